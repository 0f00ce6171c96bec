"""Tokens whose positions differ by multiples of a stride, brought together: a stride becomes a step of one place.

Positions are divided into classes by their residue. Every class of every batch row becomes a row of its own, its
tokens in order, so that a dilated window is a window, and a column of a strided pattern is a causal sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues, along_time
from lcbench.attention.pairs import Block, Pairs
from lcbench.attention.ranges import Ranges
from lcbench.attention.reach import DilatedWindow, Reach, Window
from lcbench.position.base import Alignment


class _Alike:
    """Distances are the same in all rows."""

    def alignment(self, block: Block, vectors: Tensor | None = None) -> Alignment:
        one = Block(slice(block.batch.start, block.batch.start + 1), block.rows, block.columns, block.free)
        return super().alignment(one, vectors)  # type: ignore[misc]


@dataclass(frozen=True)
class _AlikePairs(_Alike, Pairs):
    pass


@dataclass(frozen=True)
class _AlikeRanges(_Alike, Ranges):
    pass


class Residues:
    """Queries and keys by the residues of their positions modulo ``stride``.

    Where rows are alike, the first key of the buffer opens the first class, and a class is a slice with a step. Where
    they differ, tokens are sorted, and queries stand in the places of the last keys.

    Args:
        context: describes the queries, which are the last of the keys; padding must come last.
        keys: all keys.
        stride: how many classes.
    """

    def __init__(self, context: Context, keys: KeyValues, stride: int) -> None:
        self.stride = stride
        self.batch, self.time, self.length = len(context.positions), context.positions.shape[1], keys.length
        self.before = keys.length - self.time
        self.facts = keys
        facts = keys.padding is not None or keys.documents is not None or not keys.consecutive
        #: position of the first key, where rows are alike
        self.start = None if context.start is None or facts else context.start - self.before
        if self.start is not None:
            self.places = -(-self.length // stride)  # of a class
            self.skipped = self.before // stride  # of them before the first query's
        else:
            self.skipped = 0
            self._sort(keys)

    def _sort(self, keys: KeyValues) -> None:
        padding = keys.padding
        self._padding = torch.zeros_like(keys.positions, dtype=torch.bool) if padding is None else padding
        residue = (keys.positions % self.stride).masked_fill(self._padding, self.stride)
        order = residue.argsort(dim=1, stable=True)
        count = residue.new_zeros(self.batch, self.stride + 1).scatter_add_(1, residue, torch.ones_like(residue))
        self.places = max(1, int(count[:, :-1].max()))
        number = residue.gather(1, order)
        rank = torch.arange(self.length, device=residue.device) - (count.cumsum(1) - count).gather(1, number)
        outside = self.stride * self.places
        place = (number * self.places + rank).masked_fill(number == self.stride, outside)
        self._place = torch.empty_like(place).scatter_(1, order, place)
        everywhere = residue.new_zeros(self.batch, outside + 1)
        self._token = everywhere.scatter(1, place, order)[:, :-1]
        self._hole = torch.ones_like(everywhere, dtype=torch.bool).scatter(1, place, False)[:, :-1]

    def keys(self, tensor: Tensor) -> Tensor:
        """``[batch, heads, k_time, any]`` to ``[batch * stride, heads, places, any]``, zero where there is no key."""
        if self.start is not None:
            return self._stepped(tensor, 0, self.places * self.stride - self.length)
        return self._sorted(tensor, self._token, self._hole, 0)

    def queries(self, tensor: Tensor, fill: float = 0) -> Tensor:
        """``[batch, heads, q_time, any]`` to ``[batch * stride, heads, places - skipped, any]``."""
        if self.start is not None:
            first = self.before - self.skipped * self.stride
            end = (self.places - self.skipped) * self.stride - first - self.time
            return self._stepped(tensor, first, end, fill)
        token = self._token - self.before
        return self._sorted(tensor, token.clamp(min=0), self._hole | (token < 0), fill)

    def lift(self, tensor: Tensor) -> Tensor:
        """Back: ``[batch * stride, heads, places - skipped, any]`` to ``[batch, heads, q_time, any]``."""
        classes = tensor.unflatten(0, (self.batch, self.stride))
        if self.start is not None:
            first = self.before - self.skipped * self.stride
            # in memory by time, then by head: heads are merged again
            return classes.permute(0, 3, 1, 2, 4).flatten(1, 2)[:, first : first + self.time].transpose(1, 2)
        place = self._place[:, self.before :].clamp(max=self.stride * self.places - 1)
        o = along_time(classes.transpose(1, 2).flatten(2, 3), place)
        return o.masked_fill(self._padding[:, None, self.before :, None], 0)

    def window(self, width: int, causal: bool, floor: int = 0) -> Pairs:
        """Every query sees the last ``width`` keys of its class (both ways, as many after it), but for those at
        positions below ``floor``."""
        if self.start is None:
            pairs = self._pairs(causal, DilatedWindow(width, self.stride))
            assert pairs.padding is not None
            return replace(pairs, padding=pairs.padding | (pairs.k_positions < floor))
        below, padding = max(0, floor - self.start), None
        if below % self.stride or not (causal or self.length % self.stride == 0):
            # classes differ in where they begin or end
            place = torch.arange(self.length, device=self.facts.positions.device).expand(self.batch, -1)
            padding = ~self._laid(place >= below)
        places = Window(width, floor=below // self.stride or None)
        return _AlikePairs(*self._alike_positions(), None, None, padding, False, causal, places, 0)

    def past(self, reach: Reach | None) -> Pairs:
        """Every query sees the keys of its class up to itself, or those before the first position of ``reach``."""
        if reach is None:
            if self.start is None:
                return self._pairs(True, None)
            return _AlikePairs(*self._alike_positions(), None, None, None, False, True, None, None)
        count = self.places - self.skipped
        if self.start is None:
            pairs = self._pairs(False, reach)
            facts = (pairs.q_positions, pairs.k_positions, pairs.q_documents, pairs.k_documents, pairs.padding)
            lows, highs = np.zeros(count, np.int64), np.arange(count)
            return Ranges(*facts, False, False, reach, None, lows, highs, False)
        # of the class that ``reach.since`` leaves most of: all of them, as it is a stride's multiple away
        last = np.arange(self.skipped, self.places) * self.stride
        highs = np.array([-(-max(0, reach.since(int(at))) // self.stride) for at in last], np.int64)
        lows = np.zeros(count, np.int64)
        return _AlikeRanges(*self._alike_positions(), None, None, None, False, False, reach, None, lows, highs, True)

    def _alike_positions(self) -> tuple[Tensor, Tensor]:
        """Of queries and keys, but for one number that all have in common, as distances need them."""
        at = torch.arange(self.places, device=self.facts.positions.device) * self.stride
        at = at.expand(self.batch * self.stride, -1)
        return at[:, self.skipped :], at

    def _pairs(self, causal: bool, reach: Reach | None) -> Pairs:
        keys = self.facts
        positions = self._laid(keys.positions)
        documents = None if keys.documents is None else self._laid(keys.documents)
        hole = self._hole.unflatten(1, (self.stride, self.places)).flatten(0, 1)
        return Pairs(positions, positions, documents, documents, hole, False, causal, reach, None)

    def _laid(self, fact: Tensor) -> Tensor:
        """``[batch, k_time]`` to ``[batch * stride, places]``."""
        return self.keys(fact[:, None, :, None])[:, 0, :, 0]

    def _stepped(self, tensor: Tensor, first: int, end: int, fill: float = 0) -> Tensor:
        """``[batch, heads, time, any]``, with ``first`` places before it and ``end`` after it ``places * stride``, to
        ``[batch * stride, heads, places, any]``."""
        if first or end:
            tensor = pad(tensor, (0, 0, first, end), value=fill)
        return tensor.unflatten(2, (-1, self.stride)).permute(0, 3, 1, 2, 4).flatten(0, 1)

    def _sorted(self, tensor: Tensor, token: Tensor, hole: Tensor, fill: float) -> Tensor:
        laid = along_time(tensor, token).masked_fill(hole[:, None, :, None], fill)
        return laid.unflatten(2, (self.stride, self.places)).transpose(1, 2).flatten(0, 1)
