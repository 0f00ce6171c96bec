"""What a batch is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lcbench.dataset.insertion import Insertion

#: the distribution that a model is trained on; every other name of a set of examples is an evaluation set
TRAIN = "train"


@dataclass(frozen=True)
class Batch:
    """Examples as a model reads them and a task scores them.

    Position t of ``targets`` is what the model should output after reading ``tokens`` up to and including t.

    Args:
        tokens: model input, int64 ``[batch, time]``.
        targets: int64 ``[batch, time]``; any value where a position is neither scored nor supervised.
        scored: bool ``[batch, time]``, where metrics look.
        supervised: bool ``[batch, time]``, where the training loss looks.
        padding: bool ``[batch, time]``, True where ``tokens`` is padding, all of it on the right, or None.
        facts: per example ``[batch]`` or per position ``[batch, time]``: what results are grouped by.
        landmarks: bool ``[batch, time]``, True where ``tokens`` is a landmark, or None: there are none.
        documents: int64 ``[batch, time]``, which document a token of a row belongs to, or None: a row is one. Nothing
            is read across documents.
        crossbatch: a pair a row, of how many earlier contexts of its own and of how many other rows' contexts layers
            with memory may read in it; None: rows are apart.
        continues: whether every row goes on where the same row of the batch before ended: a model's state is carried.
    """

    tokens: Tensor
    targets: Tensor
    scored: Tensor
    supervised: Tensor
    padding: Tensor | None = None
    facts: dict[str, Tensor] = field(default_factory=dict)
    landmarks: Tensor | None = None
    documents: Tensor | None = None
    continues: bool = False
    crossbatch: tuple[tuple[int, int], ...] | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with ``function`` applied to every tensor."""
        changes: dict[str, Any] = {
            f.name: function(value)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        facts = {name: function(value) for name, value in self.facts.items()}
        return dataclasses.replace(self, **changes, facts=facts)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return self.map(lambda tensor: tensor.to(device))

    def select(self, rows: Tensor) -> Batch:
        """Examples ``rows`` (int64 indices), without columns in which all of them are padding."""
        chosen = self.map(lambda tensor: tensor.index_select(0, rows))
        return chosen if chosen.padding is None else chosen.rows(0, len(chosen))

    def rows(self, start: int, stop: int) -> Batch:
        """Examples ``start`` to ``stop - 1`` as ``select`` gives them, without copying: not to be changed in place."""
        if self.padding is None:
            return self.map(lambda tensor: tensor[start:stop])
        least, most = self.padding[start:stop].sum(1).aminmax()
        longest = self.padding.shape[1] - int(least)
        cut = self.map(lambda tensor: tensor[start:stop] if tensor.dim() < 2 else tensor[start:stop, :longest])
        # rows of one length, which mechanisms read without looking at every token's facts
        return dataclasses.replace(cut, padding=None) if bool(least == most) else cut

    def times(self, start: int, stop: int) -> Batch:
        """Positions ``start`` to ``stop - 1`` of every example."""
        return self.map(lambda tensor: tensor[:, start:stop] if tensor.dim() > 1 else tensor)

    def padded_to(self, time: int) -> Batch:
        """The same examples with padding on the right, up to ``time`` positions."""
        return self if self.tokens.shape[1] >= time else Batch._joined([self], time)

    @staticmethod
    def concatenate(batches: Sequence[Batch]) -> Batch:
        """All examples of ``batches`` in order; shorter rows are padded on the right."""
        return Batch._joined(batches, max(batch.tokens.shape[1] for batch in batches))

    @staticmethod
    def _joined(batches: Sequence[Batch], longest: int) -> Batch:
        ragged = any(batch.tokens.shape[1] != longest or batch.padding is not None for batch in batches)

        def widen(tensor: Tensor, value: int | bool) -> Tensor:
            missing = longest - tensor.shape[1]
            return tensor if missing == 0 else torch.nn.functional.pad(tensor, (0, missing), value=value)

        def join(parts: list[Tensor], value: int | bool = 0) -> Tensor:
            return torch.cat([widen(part, value) if part.dim() > 1 else part for part in parts])

        padding = [torch.zeros_like(b.scored) if b.padding is None else b.padding for b in batches]
        documents = [torch.zeros_like(b.tokens) if b.documents is None else b.documents for b in batches]
        landmarks = [torch.zeros_like(b.scored) if b.landmarks is None else b.landmarks for b in batches]
        return Batch(
            tokens=join([b.tokens for b in batches]),
            targets=join([b.targets for b in batches]),
            scored=join([b.scored for b in batches]),
            supervised=join([b.supervised for b in batches]),
            padding=join(padding, True) if ragged else None,
            facts={name: join([b.facts[name] for b in batches]) for name in batches[0].facts},
            landmarks=None if all(b.landmarks is None for b in batches) else join(landmarks),
            documents=None if all(b.documents is None for b in batches) else join(documents),
        )


class Dataset(Protocol):
    """Where training batches come from. A constructor takes the task, the seed and the batch size, then options."""

    #: whether a batch may go on where the one before ended (``Batch.continues``)
    carries_state: bool
    #: how landmarks are put into the batches of a task; None: there are none
    insertion: Insertion | None
    #: names that ``Batch.facts`` has beside those of the task
    facts: tuple[str, ...]
    #: whether two rows may hold the same stretch of a text without saying that they are of one document
    overlapping: bool

    @property
    def longest(self) -> int:
        """Positions in the longest row of a batch."""
        ...

    @property
    def reach(self) -> int:
        """Positions in the longest document that a model reads, with what its state carries from batch to batch."""
        ...

    def batch(self, index: int) -> Batch:
        """The ``index``-th training batch, from 0, whatever was asked for before."""
        ...

    def loader(self, start: int = 0, stop: int | None = None) -> Iterable[Batch]:
        """Batches ``start`` to ``stop - 1``, or without end."""
        ...
