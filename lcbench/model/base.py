"""The interface of a model: tokens in, logits out, with facts and state on the side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from lcbench.attention.base import Attention, Context, Facts, State
from lcbench.errors import ConfigurationError

#: logits that are made at once, 64 MiB in 32 bits, where one number of each is all that is wanted
MOST_LOGITS = 2**24


@dataclass(frozen=True)
class ModelState(State):
    """What a model carries from one call to the next.

    Args:
        layers: the state of every layer that has one, None for a layer that has none.
        next_position: ``[batch]``, int64: the position of the next token if its document goes on.
        document: ``[batch]``, int64: the document of the last token; None while no document was named.
        padded: whether any call so far had padding.
        network: what made the state, in words; empty where it does not say.
    """

    layers: tuple[State | None, ...]
    next_position: Tensor
    document: Tensor | None = None
    padded: bool = False
    network: str = ""


@dataclass
class ModelOutput:
    """What a model returns.

    Logits are made when they are asked for: of a long sequence and a large vocabulary they would be most of the
    memory, so whoever needs one number of each position asks for a slice of time after another (``times``).

    Args:
        unembed: the output map, ``[..., d_model]`` to ``[..., vocabulary]``.
        vocabulary_size: how many logits it makes.
        state: the state after the last token.
        hidden: ``[batch, time, d_model]``, what the output map reads.
        keys: ``[batch, time, d_model]``, by which a position is compared with others: what the last feed-forward
            network reads, after the norm before it if there is one; ``hidden`` in a network without any.
        losses: named scalars that layers add to the training loss; usually none.
        measures: named numbers of layers for the logs, detached, one or one a head: ``layer_1/gate``.
    """

    unembed: Callable[[Tensor], Tensor]
    vocabulary_size: int
    state: ModelState
    hidden: Tensor
    keys: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    measures: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def logits(self) -> Tensor:
        """``[batch, time, vocabulary]``, made once."""
        return self.unembed(self.hidden)

    def times(self, start: int, stop: int) -> ModelOutput:
        """Positions ``start`` to ``stop - 1``; the state is that after the last token all the same."""
        return replace(self, hidden=self.hidden[:, start:stop], keys=self.keys[:, start:stop])


class Model(nn.Module, ABC):
    """A network that reads tokens and predicts the next ones.

    Feeding a sequence whole, or cut into chunks of any sizes with the state passed along, gives the same outputs to
    float tolerance.

    A subclass's constructor takes the vocabulary size first, then ``attention`` and ``position`` if it has layers of
    attention, then its own options as keyword-only arguments: those are its configuration.
    """

    #: width of ``ModelOutput.hidden``
    d_model: int

    @abstractmethod
    def forward(self, tokens: Tensor, context: Facts | None = None, state: ModelState | None = None) -> ModelOutput:
        """Read ``tokens``, int64 ``[batch, time]``; ``state`` None starts a sequence.

        ``context`` says what the tokens do not: documents, padding. The model places the tokens itself (see
        ``place``), unless it is given a ``Context``, whose positions and claim to be consecutive it trusts.
        """

    @property
    def segment(self) -> int | None:
        """Positions in the longest piece that the network or a layer of it treats as one unit; None: there is none."""
        lengths = [module.segment for module in self.modules() if isinstance(module, Attention) and module.segment]
        return max(lengths, default=None)

    @abstractmethod
    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Bytes of the state after ``length`` tokens without documents or padding, activations in ``dtype``."""


@dataclass(frozen=True)
class Placement:
    """Where the tokens of one call stand.

    Args:
        context: the caller's facts, with positions.
        starts: ``[batch, time]``, bool, True at the first token of a document; None without documents.
        reached: the state after the last token, layers left to the model.
    """

    context: Context
    starts: Tensor | None
    reached: ModelState


def place(tokens: Tensor, facts: Facts | None, state: ModelState | None, network: str = "") -> Placement:
    """Give every token of ``tokens`` ``[batch, time]`` its position; ``network`` is what reads them, in words.

    A position counts the tokens before it in its document. It continues from ``state``, row by row, across calls and
    inside a document that goes on, and starts at 0 with a new document or a reset row. Padding, on either side, is
    not counted and repeats the position before it. A token that names no document belongs to document 0.

    Distances follow from places in the buffer as long as nothing lies between two tokens of a document. Padding in
    the first call is taken to lie before or after the tokens of a row, as ragged batches have it: a caller who pads
    between tokens says ``consecutive=False``. In later calls, padding of any call may lie between, so once there was
    padding distances are taken from positions. All this is decided without reading a tensor.

    Raises:
        ConfigurationError: if the state is of another number of rows, or of another network.
    """
    facts = Facts() if facts is None else facts
    batch, time = tokens.shape
    device = tokens.device
    if state is not None:
        if (rows := len(state.next_position)) != batch:
            raise ConfigurationError(
                f"A state of {rows} rows cannot be carried on by a batch of {batch}; feed the same rows, choose "
                "rows with state.select, or start with state=None."
            )
        if state.network and network and state.network != network:
            raise ConfigurationError(
                f"A state of another network cannot be carried on: it was made by {state.network}, and this is "
                f"{network}; start with state=None."
            )
    consecutive = facts.consecutive
    if state is None:
        state = ModelState((), torch.zeros(batch, dtype=torch.int64, device=device))
    else:
        consecutive = consecutive and facts.padding is None and not state.padded
    padding, documents = facts.padding, facts.documents
    if documents is None and state.document is not None:
        documents = torch.zeros(batch, time, dtype=torch.int64, device=device)
    starts, document = (None, None) if documents is None else document_starts(documents, padding, state.document)

    # read: tokens of this call up to and including t; before: how many of them precede t's document, or minus what
    # the document had before this call; both [batch, time].
    read = torch.arange(1, time + 1, device=device).expand(batch, time) if padding is None else (~padding).cumsum(1)
    before = -state.next_position[:, None].expand(batch, time)
    if starts is not None:
        before = torch.where(starts, read - 1, before).cummax(1).values

    if isinstance(facts, Context):
        context = facts
        last = facts.positions[:, -1:] if padding is None else facts.positions.gather(1, last_token(padding)[:, -1:])
        next_position = torch.where(read[:, -1] > 0, last[:, 0] + 1, state.next_position)
    else:
        context = Context(
            positions=(read - 1 - before).clamp(min=0),
            documents=documents,
            padding=padding,
            landmarks=facts.landmarks,
            consecutive=consecutive,
            together=facts.together,
            crossbatch=facts.crossbatch,
        )
        next_position = read[:, -1] - before[:, -1]
    reached = ModelState((), next_position, document, state.padded or padding is not None, network)
    return Placement(context, starts, reached)


def last_token(padding: Tensor) -> Tensor:
    """Index of the last token at or before each place, 0 where there is none yet; both ``[batch, time]``."""
    steps = torch.arange(padding.shape[1], device=padding.device)
    return torch.where(padding, 0, steps).cummax(1).values


def document_starts(documents: Tensor, padding: Tensor | None, document: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where a token's document is not that of the token before it, ``[batch, time]``, and the last token's document,
    ``[batch]``.

    ``documents`` and ``padding`` are ``[batch, time]``; ``document`` ``[batch]`` is that of the last token before.
    """
    before = torch.zeros_like(documents[:, 0]) if document is None else document
    if padding is not None:
        # A padding takes the document of the token before it.
        read = (~padding).cumsum(1)
        documents = torch.where(read == 0, before[:, None], documents.gather(1, last_token(padding)))
    previous = torch.cat([before[:, None], documents[:, :-1]], 1)
    return documents != previous, documents[:, -1]


def check_network(sizes: dict[str, int], dropout: float) -> None:
    """Refuse a size below 1 and a dropout outside [0, 1).

    Args:
        sizes: by configuration key, e.g. ``d_model``.
        dropout: a probability.

    Raises:
        ConfigurationError: for the first that is wrong.
    """
    for key, value in sizes.items():
        if value < 1:
            raise ConfigurationError(f"model.{key}={value} is no size; the least is model.{key}=1.")
    if not 0 <= dropout < 1:
        closest = 0.0 if dropout < 0 else 0.9
        raise ConfigurationError(
            f"model.dropout={dropout} is no probability below 1; the closest choice is model.dropout={closest}."
        )
