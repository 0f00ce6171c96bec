"""Keys that some rule of positions chooses, kept in a buffer of their own, and the range of it that each query sees.

Global tokens and summaries are such keys: every later query sees them, however far away, and they are few.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues, along_time
from lcbench.attention.pairs import Block, Pairs
from lcbench.attention.reach import Reach

Ints = np.ndarray


@dataclass(frozen=True)
class Ranges(Pairs):
    """Queries, and keys of another buffer. ``reach`` is what a query reads elsewhere: here it sees the keys before the
    first position of that; without it, all keys of its document.

    Args:
        lows, highs: a query's keys lie in this range of the buffer, in every batch row, int64 ``[q_time]``.
        exact: whether a query sees all of its range.
    """

    lows: Ints
    highs: Ints
    exact: bool

    @property
    def ragged(self) -> bool:
        return True

    @property
    def all_visible(self) -> bool:
        return False

    def most_columns(self, rows: int) -> int:
        return self.k_positions.shape[1]

    def square(self, block: Block) -> bool:
        rows, columns = block.rows, block.columns
        if not self.exact or rows.stop - rows.start != columns.stop - columns.start:
            return False
        since = self.lows[rows] == columns.start
        return bool((since & (self.highs[rows] == np.arange(columns.start, columns.stop) + 1)).all())

    def pattern(self, block: Block) -> None:
        return None

    def blocks(self, batch: int, rows: int) -> Iterator[Block]:
        batches, q_time = self.q_positions.shape
        for b in range(0, batches, batch):
            start = 0
            while start < q_time:
                stop = min(start + rows, q_time)
                lows, highs = self.lows[start:stop], self.highs[start:stop]
                sees = highs > lows
                if not sees[0] and sees.any():  # the others may then be a square
                    stop = start + int(sees.argmax())
                    lows, highs = self.lows[start:stop], self.highs[start:stop]
                first, last = int(lows.min()), int(highs.max())
                free = max(0, int(highs.min()) - first) if self.exact and first == lows.max() else 0
                if last <= first:  # a block has some key, if only to hide it
                    first = min(first, self.k_positions.shape[1] - 1)
                    last = first + 1
                yield Block(slice(b, min(b + batch, batches)), slice(start, stop), slice(first, last), free)
                start = stop

    def visible(self, block: Block) -> Tensor:
        device = self.q_positions.device
        if self.exact:
            j = torch.arange(block.columns.start, block.columns.stop, device=device)
            lows, highs = (torch.from_numpy(ends[block.rows]).to(device)[:, None] for ends in (self.lows, self.highs))
            return ((j >= lows) & (j < highs))[None, None]
        q = self.q_positions[block.batch, None, block.rows, None]
        k = self.k_positions[block.batch, None, None, block.columns]
        seen = torch.ones_like(q == k) if self.reach is None else k < self.reach.since(q)
        if self.q_documents is not None and self.k_documents is not None:
            documents = self.k_documents[block.batch, None, None, block.columns]
            seen = seen & (self.q_documents[block.batch, None, block.rows, None] == documents)
        if self.padding is not None:
            seen = seen & ~self.padding[block.batch, None, None, block.columns]
        return seen


class Rule(ABC):
    """Chooses tokens by their positions in the document."""

    @abstractmethod
    def chooses(self, positions: Tensor) -> Tensor:
        """bool, of the same shape."""

    @abstractmethod
    def below(self, positions: Ints) -> Ints:
        """How many positions below each one are chosen, for positions of any sign."""


@dataclass(frozen=True)
class First(Rule):
    """The first ``count`` positions."""

    count: int

    def chooses(self, positions: Tensor) -> Tensor:
        return positions < self.count

    def below(self, positions: Ints) -> Ints:
        return np.clip(positions, 0, self.count)


@dataclass(frozen=True)
class Slots(Rule):
    """In every block of ``length`` positions those from ``start`` up to, not including, ``stop``."""

    length: int
    start: int
    stop: int

    def chooses(self, positions: Tensor) -> Tensor:
        slot = positions % self.length
        return (slot >= self.start) & (slot < self.stop)

    def below(self, positions: Ints) -> Ints:
        width, positions = self.stop - self.start, np.maximum(positions, 0)
        return positions // self.length * width + np.clip(positions % self.length - self.start, 0, width)


class Chosen:
    """The tokens of a call that ``rule`` chooses; padding must come last in a row.

    Attributes:
        width: how many there are in the row that has most.
        alike: whether they are the same in all rows, without documents or padding.
        context: describes them, ``[batch, width]``.
    """

    def __init__(self, context: Context, rule: Rule) -> None:
        self.rule, self.all = rule, context
        positions = context.positions
        time, device = positions.shape[1], positions.device
        start = context.start
        self.alike = start is not None
        if start is not None:
            self.first = start
            counts = rule.below(np.arange(start, start + time + 1)) - rule.below(np.array(start))
            index = torch.from_numpy(np.flatnonzero(np.diff(counts))).to(device)
            self.width = len(index)
            self._index, hidden, self.mask = index.expand(len(positions), -1), None, None
        else:
            self.mask = rule.chooses(positions)
            if context.padding is not None:
                self.mask = self.mask & ~context.padding
            self.width = int(self.mask.sum(1).max()) if self.mask.numel() else 0
            self._index = (~self.mask).long().argsort(dim=1, stable=True)[:, : self.width]
            hidden = ~self.mask.gather(1, self._index)
        taken = context.map(lambda tensor: tensor.gather(1, self._index))
        consecutive = self.alike and isinstance(rule, First)
        self.context = dataclasses.replace(taken, padding=hidden, consecutive=consecutive, together=False)

    def take(self, tensor: Tensor) -> Tensor:
        """``[batch, ..., time, any]`` to ``[batch, ..., width, any]``."""
        if self.alike:
            return tensor.index_select(-2, self._index[0])
        return along_time(tensor, self._index)

    def keys(self, keys: KeyValues) -> KeyValues:
        """Those of the call's ``keys`` that are chosen."""
        features = None if keys.features is None else self.take(keys.features)
        return KeyValues.of(self.take(keys.k), self.take(keys.v), features, self.context)

    def put(self, chosen: Tensor, others: Tensor) -> Tensor:
        """``others`` ``[batch, heads, time, any]`` with ``chosen`` ``[batch, heads, width, any]`` in their places."""
        if self.alike:
            return others.index_copy(2, self._index[0], chosen.to(others.dtype))
        assert self.mask is not None
        rank = (self.mask.cumsum(1) - 1).clamp(min=0)
        return torch.where(self.mask[:, None, :, None], along_time(chosen, rank), others)

    def pairs(self, keys: KeyValues, reach: Reach | None) -> Ranges:
        """The queries of the call, and ``keys``: chosen tokens, those of the call last."""
        before = keys.length - self.width
        time = self.all.positions.shape[1]
        exact = self.alike and keys.padding is None and keys.documents is None
        if exact:
            lows, highs = np.zeros(time, np.int64), np.full(time, keys.length)
            if reach is not None:
                until = reach.since(np.arange(self.first, self.first + time))
                base = int(self.rule.below(np.array(self.first))) - before
                highs = np.clip(self.rule.below(until) - base, 0, keys.length)
        elif self.mask is None:
            lows, highs = np.zeros(time, np.int64), np.full(time, keys.length)
        else:
            counts = self.mask.cumsum(1) + before
            first, last = document_bounds(self.all, counts - self.mask.long(), keys.length)
            lows = host(first.amin(0))
            highs = host((last if reach is None else torch.minimum(last, counts)).amax(0))
        return ranges(self.all, keys, reach, lows, highs, exact)


def ranges(context: Context, keys: KeyValues, reach: Reach | None, lows: Ints, highs: Ints, exact: bool) -> Ranges:
    """The queries that ``context`` describes, and ``keys``."""
    pairs = Pairs.of(context, keys, False, None)
    facts = {f.name: getattr(pairs, f.name) for f in dataclasses.fields(pairs)}
    return Ranges(**facts | {"consecutive": False, "reach": reach}, lows=lows, highs=highs, exact=exact)


def document_bounds(context: Context, counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Of something counted along time, what lies in a token's document.

    Args:
        counts: how many come before each token, ``[batch, time]``; what calls before have counted included.
        total: how many there are.

    Returns:
        The first of a token's document (0 where that began in an earlier call) and one after its last, both
        ``[batch, time]``.
    """
    if context.documents is None:
        return torch.zeros_like(counts), torch.full_like(counts, total)
    documents = context.documents
    starts = torch.zeros_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    first = torch.where(starts, counts, 0).cummax(1).values
    # what the next document to begin finds before it
    following = torch.where(starts, counts, total).flip(1).cummin(1).values.flip(1)
    return first, torch.cat([following[:, 1:], torch.full_like(counts[:, :1], total)], 1)


def host(tensor: Tensor) -> Ints:
    return tensor.cpu().numpy()


def compact(keys: KeyValues, most: int | None = None) -> KeyValues:
    """The last ``most`` tokens of each row, or all, in a buffer no wider than the row with most of them needs, so
    that it depends on the tokens and not on how they were cut into calls."""
    held = keys.length if keys.padding is None else int((~keys.padding).sum(1).max())
    return keys.recent(held if most is None else min(held, most))
