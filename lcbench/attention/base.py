"""The interface of an attention mechanism: how one layer reads the past."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lcbench.errors import ConfigurationError
from lcbench.position.base import Counts, LayerShape, PositionEncoding


@dataclass(frozen=True)
class CrossBatch:
    """Previous contexts that a row's memory layers read in cross-batch training (Tworkowski et al. 2023).

    Args:
        n_pos: of the row's own document.
        n_neg: of other documents: the one before the current context in each of the next ``n_neg`` rows.

    Raises:
        ConfigurationError: for a number below 0.
    """

    n_pos: int
    n_neg: int

    def __post_init__(self) -> None:
        for name, value in (("n_pos", self.n_pos), ("n_neg", self.n_neg)):
            if value < 0:
                raise ConfigurationError(f"{name}={value} is no number of contexts; the least is 0.")

    def require(self, rows: int) -> None:
        """Refuse a batch of ``rows`` rows that has too few contexts.

        Raises:
            ConfigurationError: if there are fewer than ``n_pos + n_neg + 1``.
        """
        least = self.n_pos + self.n_neg + 1
        if rows < least:
            raise ConfigurationError(
                f"trainer.batch_size={rows} is too small for cross-batch training with n_pos={self.n_pos} and "
                f"n_neg={self.n_neg}; the least is trainer.batch_size={least}."
            )


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a caller knows of the tokens it feeds to a model; the model places them and makes a ``Context`` of it.

    Args:
        documents: ``[batch, time]``, int64, or None: attention never crosses a document, and a memory is cleared
            at its start. A row's documents follow each other: one that ended does not come back.
        padding: ``[batch, time]``, bool, True where a token is padding, or None.
        landmarks: ``[batch, time]``, bool, True where a token is a landmark, or None.
        consecutive: whether, inside a document, every token's position is one more than the one before it in the
            row. Then distances follow from places in the buffer, and encodings need no table of distances. False
            where positions jump, or where padding lies between two tokens of a document.
        together: whether the tokens of this call see each other both ways, beside what they see of earlier ones.
            Only for a mechanism whose ``reads_together`` is True.
        crossbatch: for each row, which previous contexts its memory layers read in training, or None: all that comes
            before in the row. Rows are then of one document each, begin at the same position and have no padding.
    """

    documents: Tensor | None = None
    padding: Tensor | None = None
    landmarks: Tensor | None = None
    consecutive: bool = True
    together: bool = False
    crossbatch: tuple[CrossBatch, ...] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same facts with ``function`` applied to every tensor, e.g. a slice of time."""
        changes: dict[str, Any] = {
            f.name: function(value)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Context(Facts):
    """Facts per token that all layers share.

    Args:
        positions: ``[batch, time]``, int64: a token's place in its document.
    """

    positions: Tensor

    @cached_property
    def start(self) -> int | None:
        """The position of the first token, where all rows have the same one and each token follows the one before it;
        None where rows differ, or there are documents or padding.

        Then positions are known without a tensor, and segments are slices. Read from the tensor once for all layers;
        tensors without values are taken to start a sequence.
        """
        if (
            self.documents is not None
            or self.padding is not None
            or not self.consecutive
            or not self.positions.numel()
        ):
            return None
        first = self.positions[:, 0]
        if isinstance(first, FakeTensor) or first.is_meta:
            return 0
        low, high = first.aminmax()
        return int(low) if bool(low == high) else None

    @cached_property
    def whole_rows(self) -> int:
        """How many batch rows, from the first, are of one document each; 0 where there are no documents, or padding,
        or tensors without values.

        Read from the tensor once for all layers.
        """
        documents = self.documents
        if documents is None or self.padding is not None or not documents.numel():
            return 0
        # one graph for all batches
        if isinstance(documents, FakeTensor) or documents.is_meta or torch.compiler.is_compiling():
            return 0
        alone = (documents == documents[:, :1]).all(1)  # [batch]
        return int(alone.long().cumprod(0).sum())


class State:
    """What a layer, or a model, carries from one call to the next.

    A subclass is a frozen dataclass whose fields are tensors with the batch first, other states, tuples of states,
    None, or plain numbers. It is returned and never changed in place; only the engine detaches.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same state with ``function`` applied to every tensor."""

        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, State):
                return value.map(function)
            if isinstance(value, tuple):
                return tuple(apply(item) for item in value)
            return value

        changes = {f.name: apply(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def detach(self) -> Self:
        """The same values, cut off from the graph that made them."""
        return self.map(torch.Tensor.detach)

    def select(self, rows: Tensor) -> Self:
        """The states of batch rows ``rows`` (int64 indices, ``[any]``), in that order."""
        return self.map(lambda tensor: tensor.index_select(0, rows))

    def reset(self, rows: Tensor) -> Self:
        """Batch rows where ``rows`` (bool, ``[batch]``) become a fresh start.

        A tensor's fresh start is zero; a state for which it is not overrides this.
        """

        def clear(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.masked_fill(rows.view(-1, *[1] * (value.dim() - 1)), 0)
            if isinstance(value, State):
                return value.reset(rows)
            if isinstance(value, tuple):
                return tuple(clear(item) for item in value)
            return value

        changes = {f.name: clear(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def packed(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists and tensors, for a checkpoint; ``unpacked`` brings it back."""

        def pack(value: Any) -> Any:
            if isinstance(value, State):
                return value.packed()
            return [pack(item) for item in value] if isinstance(value, tuple) else value

        fields = {f.name: pack(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"state": f"{type(self).__module__}.{type(self).__qualname__}", "fields": fields}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        total = 0

        def add(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        self.map(add)
        return total


def unpacked(packed: dict[str, Any]) -> State:
    """The state that ``State.packed`` was called on. Makes only states of classes that are imported already.

    Raises:
        ValueError: if there is no such class.
    """

    def unpack(value: Any) -> Any:
        if isinstance(value, dict):
            return unpacked(value)
        return tuple(unpack(item) for item in value) if isinstance(value, list) else value

    known = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _kinds(State)}
    if packed["state"] not in known:
        raise ValueError(f"{packed['state']} is no state of this model")
    return known[packed["state"]](**{name: unpack(value) for name, value in packed["fields"].items()})


def _kinds(kind: type[State]) -> list[type[State]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _kinds(child))]


@dataclass(frozen=True)
class Run:
    """Some tokens of a call, next to each other.

    Args:
        length: how many.
        together: whether they see each other both ways; see ``Facts.together``.
    """

    length: int
    together: bool


@dataclass
class AttentionOutput:
    """What a layer returns.

    Args:
        y: ``[batch, time, d_model]``.
        state: the state after the last token.
        losses: named scalars added to the training loss, usually none.
        measures: named numbers for the logs, detached, one or one a head: gates, distances of what was retrieved.
    """

    y: Tensor
    state: State | None
    losses: dict[str, Tensor] = field(default_factory=dict)
    measures: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Looks:
    """What queries look at: ``[batch, heads, q_time, k_time]``, in float32 at least, 0 where a pair is not visible.

    Args:
        weights: of attention: each query's sum to 1, or are 0 where it sees nothing; times the values they are what
            the heads read.
        counts: gates and positions, where the encoding counts.
    """

    weights: Tensor
    counts: Counts | None


class Attention(nn.Module, ABC):
    """How one layer reads the past.

    Feeding a sequence whole, or cut into chunks of any sizes with the state passed along, gives the same outputs to
    float tolerance.

    A subclass's constructor takes the ``LayerShape`` and the layer's position encoding first, then its own options as
    keyword-only arguments: those are its configuration. It raises ``ConfigurationError`` for an encoding it cannot
    work with.
    """

    #: positions in the piece of a document that the mechanism treats as one unit; None: it has no such piece
    segment: int | None = None
    #: numbers that a layer carries for one sequence of T tokens, in the literature's symbols: H heads of dk (keys) and
    #: dv (values), d the width
    footprint: str = ""
    #: names of the losses it returns in training
    own_losses: tuple[str, ...] = ()
    #: whether it obeys ``Facts.together``
    reads_together: bool = False
    #: whether evaluation reads otherwise than training, by definition and not because of dropout
    evaluation_differs: bool = False
    #: whether it carries what it has read beyond any length it was trained on, by design
    remembers: bool = False
    #: whether it is nothing but full attention where no token is a landmark
    needs_landmarks: bool = False

    def __init__(self, shape: LayerShape, position: PositionEncoding) -> None:
        super().__init__()
        self.shape = shape
        self.position = position

    def share(self, first: Attention) -> None:
        """Called on the attention of every later layer with that of layer 0: adopt the parameters all layers share.

        Those of position encodings are shared already (``PositionEncoding.share``).
        """

    def both_ways(self, context: Context) -> bool:
        """Whether the tokens of ``context`` are to be read both ways.

        Raises:
            ConfigurationError: if they are, and the encoding reads backwards only.
        """
        if context.together and not self.position.reads_ahead:
            raise ConfigurationError(
                f"{type(self).__name__} reads both ways here, and position {type(self.position).__name__} knows no "
                "keys after the query; the closest choices are position=rope and position=t5 position.two_sided=true."
            )
        return context.together

    @abstractmethod
    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` None starts a sequence."""

    def read_runs(self, x: Tensor, context: Context, runs: Sequence[Run], state: State | None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``, which ``runs`` make up, each as if it were a call of its own. The
        losses and measures are the last run's."""
        outputs, start = [], 0
        for run in runs:
            piece = slice(start, start + run.length)
            own = context.map(lambda tensor, piece=piece: tensor[:, piece])  # type: ignore[misc]
            outputs.append(self(x[:, piece], dataclasses.replace(own, together=run.together), state))
            start, state = piece.stop, outputs[-1].state
        return dataclasses.replace(outputs[-1], y=torch.cat([output.y for output in outputs], 1))

    def looks(self, x: Tensor, context: Context) -> Looks:
        """What the tokens of a whole sequence ``x`` ``[batch, time, d_model]``, read as in evaluation, look at. There
        is no padding and no document.

        Raises:
            ConfigurationError: if that is not one weight for each token before it.
        """
        raise ConfigurationError(
            f"{type(self).__name__} has no map of weights: what it reads is not one softmax over the tokens before; "
            "the closest with one are attention=full, sliding_window, transformer_xl, shifted and longt5_local."
        )

    @abstractmethod
    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Bytes of the state after ``length`` tokens without documents or padding, activations in ``dtype``."""
