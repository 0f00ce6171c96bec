"""Which query sees which key, and at what distance, for one block of queries at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues
from lcbench.attention.reach import Reach, Segment, Window
from lcbench.position.base import Alignment

#: queries in a block at least: matrix products need rows
_LEAST_ROWS = 32


@dataclass(frozen=True)
class Block:
    """Some queries of some batch rows, and the keys that any of them may see.

    ``free``: how many of the first columns every query of the block sees for certain.
    """

    batch: slice
    rows: slice
    columns: slice
    free: int

    @property
    def of_queries(self) -> tuple[slice, slice, slice]:
        """Where the block lies in ``[batch, heads, q_time, any]``."""
        return self.batch, slice(None), self.rows

    @property
    def of_keys(self) -> tuple[slice, slice, slice]:
        """Where the block lies in ``[batch, heads, k_time, any]``."""
        return self.batch, slice(None), self.columns

    @property
    def pairs(self) -> int:
        """Of one head of one batch row."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)


@dataclass(frozen=True)
class Pairs:
    """All queries of a call and all their keys; the last query is aligned with the last key."""

    q_positions: Tensor
    k_positions: Tensor
    q_documents: Tensor | None
    k_documents: Tensor | None
    padding: Tensor | None
    consecutive: bool
    causal: bool
    reach: Reach | None
    #: position of key 0, where positions are known without a tensor
    first: int | None

    @staticmethod
    def of(context: Context, keys: KeyValues, causal: bool, reach: Reach | None) -> Pairs:
        q_documents, k_documents = context.documents, keys.documents
        if q_documents is not None or k_documents is not None:
            q_documents = torch.zeros_like(context.positions) if q_documents is None else q_documents
            k_documents = torch.zeros_like(keys.positions) if k_documents is None else k_documents
        consecutive = context.consecutive and keys.consecutive
        first = None
        if reach is not None and consecutive and q_documents is None and keys.padding is None:
            offset = keys.length - context.positions.shape[1]
            first = None if context.start is None else context.start - offset
            if first is not None and _sees_all(reach, first, first + keys.length, causal):
                reach = None
        return Pairs(
            q_positions=context.positions,
            k_positions=keys.positions,
            q_documents=q_documents,
            k_documents=k_documents,
            padding=keys.padding,
            consecutive=consecutive,
            causal=causal,
            reach=reach,
            first=first,
        )

    @property
    def offset(self) -> int:
        """Index of the first query among the keys."""
        return self.k_positions.shape[1] - self.q_positions.shape[1]

    @property
    def ragged(self) -> bool:
        """Whether visibility differs between batch rows; only then may a query see nothing at all."""
        apart = self.reach is not None and self.first is None
        return self.q_documents is not None or self.padding is not None or apart

    @property
    def all_visible(self) -> bool:
        """Whether every query sees every key."""
        return not (self.ragged or self.reach or (self.causal and self.q_positions.shape[1] > 1))

    @property
    def whole(self) -> Block:
        """All queries and all keys."""
        batches, q_time = self.q_positions.shape
        return Block(slice(0, batches), slice(0, q_time), slice(0, self.k_positions.shape[1]), 0)

    def most_columns(self, rows: int) -> int:
        """Keys that a block of ``rows`` queries sees at most."""
        k_time = self.k_positions.shape[1]
        if self.reach is None:
            return k_time
        sides = 1 if self.causal else 2
        return min(k_time, rows + sides * (self.reach.places - 1))

    def blocks(self, batch: int, rows: int) -> Iterator[Block]:
        """All queries, at most ``rows`` of at most ``batch`` batch rows at a time.

        Where segments are slices and have no memory, none is cut in the middle of one if all of it is as cheap. What a
        query does not reach is read by no block of many more queries than it reaches keys.
        """
        if self.reach is not None:
            rows = min(rows, max(_LEAST_ROWS, self.reach.places))
        batches, q_time, k_time = self.q_positions.shape[0], self.q_positions.shape[1], self.k_positions.shape[1]
        for b in range(0, batches, batch):
            start = 0
            while start < q_time:
                stop = self._stop(start, rows, q_time)
                first, last = 0, self.offset + stop if self.causal else k_time
                if self.reach is not None:
                    first, last = self._seen(start, stop, last)
                free = 0
                if not self.ragged and self.reach is None:
                    free = self.offset + start + 1 if self.causal else k_time
                yield Block(slice(b, min(b + batch, batches)), slice(start, stop), slice(first, last), free)
                start = stop

    def _stop(self, start: int, rows: int, q_time: int) -> int:
        stop = min(start + rows, q_time)
        if isinstance(self.reach, Segment) and self.first is not None:
            at = self.first + self.offset + start + self.reach.shift
            # a query of the next segment would make the block read the keys of both
            stop = min(stop, start + self.reach.length - at % self.reach.length)
        return stop

    def _seen(self, start: int, stop: int, last: int) -> tuple[int, int]:
        """The keys that queries ``start`` to ``stop - 1`` may see, of those before ``last``."""
        assert self.reach is not None
        if self.first is None:
            first = self.offset + start - self.reach.places + 1
            last = min(last, self.offset + stop - 1 + self.reach.places)
        else:
            first = self.reach.since(self.first + self.offset + start) - self.first
            if not self.causal:
                last = min(last, self.reach.until(self.first + self.offset + stop - 1) - self.first + 1)
        # a block has some key, if only to hide it
        return max(0, min(first, last - 1)), last

    def square(self, block: Block) -> bool:
        """Whether the block's keys are its queries' own, each seen by all from itself on."""
        rows, columns = block.rows, block.columns
        own = (rows.start + self.offset, rows.stop + self.offset) == (columns.start, columns.stop)
        return own and self.causal and not self.ragged and (self.reach is None or isinstance(self.reach, Segment))

    def pattern(self, block: Block) -> tuple[int, int, int] | None:
        """What ``visible`` follows from where a block's place decides nothing: blocks that agree have one mask."""
        if self.ragged or not isinstance(self.reach, Window) or self.first is None:
            return None
        rows, columns, floor = block.rows, block.columns, self.reach.floor
        if floor is not None and self.first + columns.start < floor:
            return None
        return rows.stop - rows.start, columns.stop - columns.start, self.offset + rows.start - columns.start

    def alignment(self, block: Block, vectors: Tensor | None = None) -> Alignment:
        """``vectors``: of all distances, ``[1 or heads, q_time + k_time - 1, any]``, or None."""
        rows, columns = block.rows, block.columns
        if vectors is not None:
            vectors = vectors[:, self.distances(block)]
        return Alignment(
            self.q_positions[block.batch, rows],
            self.k_positions[block.batch, columns],
            self.offset + rows.start - columns.start if self.consecutive else None,
            vectors,
        )

    def distances(self, block: Block) -> slice:
        """Where the distances of the block lie among those of the whole, both largest first."""
        first = self.q_positions.shape[1] - block.rows.stop + block.columns.start
        return slice(first, first + block.rows.stop - block.rows.start + block.columns.stop - block.columns.start - 1)

    def visible(self, block: Block) -> Tensor:
        """bool, ``[1 or batch, 1, rows, columns]``."""
        device = self.q_positions.device
        i = torch.arange(block.rows.start, block.rows.stop, device=device)[:, None] + self.offset
        j = torch.arange(block.columns.start, block.columns.stop, device=device)
        seen = (j <= i if self.causal else j >= 0)[None, None].expand(1, 1, len(i), len(j))
        if self.reach is not None:
            # known positions are the same in all rows: [1, 1, rows, 1] and [1, 1, 1, columns]
            q = self.q_positions[block.batch, None, block.rows, None] if self.first is None else i + self.first
            k = self.k_positions[block.batch, None, None, block.columns] if self.first is None else j + self.first
            seen = seen & (k >= self.reach.since(q))
            if not self.causal:
                seen = seen & (k <= self.reach.until(q))
        if self.q_documents is not None and self.k_documents is not None:
            documents = self.k_documents[block.batch, None, None, block.columns]
            seen = seen & (self.q_documents[block.batch, None, block.rows, None] == documents)
        if self.padding is not None:
            seen = seen & ~self.padding[block.batch, None, None, block.columns]
        return seen


def _sees_all(reach: Reach, first: int, stop: int, causal: bool) -> bool:
    """Whether the last query, and both ways the first, sees every key at positions ``first`` to ``stop - 1``."""
    return reach.since(stop - 1) <= first and (causal or reach.until(first) >= stop - 1)
