"""Tokens laid out so that every block of ``b`` positions of a document is a row of its own, called a tile.

Block n of a document holds its positions ``n b`` to ``(n + 1) b - 1``. A tile has ``b`` places; where the document has
no token, it is a hole. Which tiles there are follows from positions and documents alone: not from how the sequence was
cut into calls, nor from padding. This is index arithmetic on few numbers and is done on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lcbench.attention.base import Context
from lcbench.attention.blocks import Ints, on
from lcbench.attention.cache import Cache, along_time


@dataclass(frozen=True)
class Tiles:
    """The tiles of a call's keys. Arrays have one row for all batch rows where these are alike.

    Args:
        b: places in a tile.
        block: number of a tile's block in its document, ``[1 or batch, tiles]``.
        document: which of its row's documents a tile is of, from 0; -1 where a row has fewer tiles.
        since: the first tile that holds a query.
        positions: at every place, ``[1 or batch, tiles * b]``; anything at holes.
        hole: bool, the same shape; None if there are none.
        edges: holes before and after all keys, and before all queries in their tiles, where rows are alike.
        order: otherwise the key at a place, ``[batch, tiles * b]``, 0 at holes.
        back: and the place of a query, from tile ``since`` on, ``[batch, q_time]``, 0 for padding.
        offset: keys before the first query.
    """

    b: int
    block: Ints
    document: Ints
    since: int
    positions: Tensor
    hole: Tensor | None
    edges: tuple[int, int, int] | None
    order: Tensor | None
    back: Tensor | None
    offset: int

    @property
    def count(self) -> int:
        return self.block.shape[1]

    def lay(self, keys: Tensor) -> Tensor:
        """``[batch, heads, time, any]`` to ``[batch, heads, tiles * b, any]``."""
        if self.edges is None:
            assert self.order is not None
            return along_time(keys, self.order)
        before, after, _ = self.edges
        return pad(keys, (0, 0, before, after)) if before or after else keys

    def lay_queries(self, q: Tensor) -> Tensor:
        """``[batch, heads, q_time, any]`` to ``[batch, heads, (tiles - since) * b, any]``."""
        if self.edges is None:
            assert self.order is not None
            order = (self.order[:, self.since * self.b :] - self.offset).clamp(min=0)
            return along_time(q, order)
        _, after, before = self.edges
        return pad(q, (0, 0, before, after)) if before or after else q

    def take_back(self, o: Tensor, q_time: int) -> Tensor:
        """The reverse of ``lay_queries``; anything at padding."""
        if self.edges is None:
            assert self.back is not None
            return along_time(o, self.back)
        before = self.edges[2]
        return o[:, :, before : before + q_time]

    def of_document(self) -> tuple[Ints, Ints]:
        """The first and the last tile of each tile's document, ``[1 or batch, tiles]`` both."""
        rows = np.arange(len(self.block))[:, None]
        documents = int(self.document.max()) + 1
        first = np.full((len(self.block), documents + 1), self.count)
        last = np.full((len(self.block), documents + 1), -1)
        tiles = np.broadcast_to(np.arange(self.count), self.document.shape)
        np.minimum.at(first, (rows, self.document), tiles)
        np.maximum.at(last, (rows, self.document), tiles)
        return first[rows, self.document], last[rows, self.document]

    def find(self, row: Ints, document: Ints, block: Ints) -> tuple[Ints, Ints]:
        """The tile of block ``block`` of a row's document, and whether there is one; all ``[any]``."""
        stride = max(int(self.block.max()), int(block.max(initial=0))) + 2
        per_row = (int(self.document.max()) + 2) * stride
        known = np.where(self.document < 0, per_row - 1, self.document * stride + self.block)  # rises along a row
        known = (known + np.arange(len(known))[:, None] * per_row).ravel()
        wanted = row * per_row + document * stride + block
        found = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return found % self.count, (known[found] == wanted) & (block >= 0)


def tile(keys: Cache, context: Context, b: int) -> Tiles:
    """The tiles of ``keys``, the last of which are the queries that ``context`` describes."""
    time, q_time = keys.length, context.positions.shape[1]
    offset = time - q_time
    if context.start is not None and keys.consecutive and keys.documents is None and keys.padding is None:
        first = max(0, context.start - offset)  # without values a sequence begins at 0
        begin, end = first // b, -(-(first + time) // b)
        before, after = first - begin * b, end * b - first - time
        place = torch.arange(begin * b, end * b, device=keys.positions.device)
        hole = (place < first) | (place >= first + time)
        return Tiles(
            b=b,
            block=np.arange(begin, end)[None],
            document=np.zeros((1, end - begin), np.int64),
            since=(first + offset) // b - begin,
            positions=place[None],
            hole=hole[None] if before or after else None,
            edges=(before, after, (first + offset) % b),
            order=None,
            back=None,
            offset=offset,
        )

    position = keys.positions.cpu().numpy()
    document = np.zeros_like(position) if keys.documents is None else keys.documents.cpu().numpy()
    real = np.ones(position.shape, bool) if keys.padding is None else ~keys.padding.cpu().numpy()
    batch = len(position)
    order = np.argsort(~real, axis=1, kind="stable")
    position, document, real = (np.take_along_axis(a, order, 1) for a in (position, document, real))
    starts = np.ones(position.shape, bool)
    starts[:, 1:] = document[:, 1:] != document[:, :-1]
    begins = starts.copy()
    begins[:, 1:] |= position[:, 1:] // b != position[:, :-1] // b
    number = np.cumsum(begins & real, 1) - 1
    count = max(1, int(number.max()) + 1)
    at = np.where(real, number * b + position % b, count * b)  # padding beyond the last tile
    number = np.where(real, number, count)
    block = np.zeros((batch, count + 1), np.int64)
    np.put_along_axis(block, number, position // b, 1)
    of = np.full((batch, count + 1), -1)
    np.put_along_axis(of, number, np.where(real, np.cumsum(starts, 1) - 1, -1), 1)
    token = np.zeros((batch, count * b + 1), np.int64)
    np.put_along_axis(token, at, order, 1)
    empty = np.ones((batch, count * b + 1), bool)
    np.put_along_axis(empty, at, ~real, 1)
    asked = real & (order >= offset)
    since = int(number[asked].min()) if asked.any() else count - 1
    back = np.zeros((batch, time), np.int64)
    np.put_along_axis(back, order, np.where(asked, at - since * b, 0), 1)
    device = keys.positions.device
    token, empty = token[:, :-1], empty[:, :-1]
    return Tiles(
        b=b,
        block=block[:, :-1],
        document=of[:, :-1],
        since=since,
        positions=keys.positions.gather(1, on(device, token)),
        hole=on(device, empty),
        edges=None,
        order=on(device, token),
        back=on(device, back[:, offset:]),
        offset=offset,
    )
