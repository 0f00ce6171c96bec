"""Where the blocks of a text lie, that landmarks close: each block as a row of equal width, its landmark last.

A block is what lies between two landmarks of a document, with the landmark that closes it; the last one of a document
may lack its own. All blocks get ``width`` places, as many as the longest finished block needs, so that the keys of a
text become ``[blocks, width]`` and a softmax over a block is a softmax over the last axis. An unfinished block that is
longer takes several rows, called pieces here; a finished block is one piece.

This is index arithmetic on few numbers and is done on the host: what follows from it are sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lcbench.attention.cache import Cache

Ints = np.ndarray


@dataclass(frozen=True)
class Layout:
    """Where each token goes. Rows are aligned at their last piece; what a row has no token for is a hole.

    Args:
        width: places in a piece; the last is the landmark's.
        pieces: in every row.
        count: tokens of each row that are no padding, ``[batch]``.
        order: the tokens of each row, padding last, ``[batch, time]``. All arrays that follow go by it.
        place: of a token, ``piece * width + slot``, ``[batch, time]``.
        block: the first piece of a token's block, ``[batch, time]``.
        document: the first piece of its document.
        local: the first piece of the block in which its window begins.
        origin: the position at which that block begins.
        opens: whether a token is the first of its window, bool.
        token: the token at a place, ``[batch, pieces * width]``; 0 at holes.
        hole: bool, ``[batch, pieces * width]``.
        first: the first piece of the block that a piece belongs to, ``[batch, pieces]``.
        size: tokens before a piece's landmark, ``[batch, pieces]``; -1 where it has none.
        identity: whether token and place are the same number in every row.
    """

    width: int
    pieces: int
    count: Ints
    order: Ints
    place: Ints
    block: Ints
    document: Ints
    local: Ints
    origin: Ints
    opens: Ints
    token: Ints
    hole: Ints
    first: Ints
    size: Ints
    identity: bool

    @property
    def used(self) -> int:
        """Places before and with the last token of any row."""
        return int(self.place[self.real].max()) + 1

    @property
    def real(self) -> Ints:
        """What is no padding, bool ``[batch, time]``, by ``order``."""
        return np.arange(self.order.shape[1]) < self.count[:, None]

    def new(self, before: int) -> Ints:
        """How many tokens each row has from token ``before`` on, ``[batch]``."""
        return (self.real & (self.order >= before)).sum(1)

    def tokens(self, index: Ints) -> Ints:
        """The tokens at ``index`` of ``order``, both ``[batch, any]``."""
        return np.take_along_axis(self.order, index, 1)

    def back(self, before: int) -> tuple[Ints, Ints]:
        """The places of tokens ``before`` and on (0 of padding), and which are padding, ``[batch, new]`` both."""
        place, padding = np.zeros_like(self.place), np.ones_like(self.real)
        np.put_along_axis(place, self.order, np.where(self.real, self.place, 0), 1)
        np.put_along_axis(padding, self.order, ~self.real, 1)
        return place[:, before:], padding[:, before:]

    def places_in_slot(self, block: int) -> Ints:
        """Positions in a slot of ``block + 1``, for each place: a block ends where its slot ends."""
        slot = np.arange(self.width)
        inside = block - self.size[:, :, None] + slot
        return np.where(slot == self.width - 1, block, inside).reshape(len(self.size), -1)

    @property
    def empty(self) -> Ints | None:
        """Pieces whose landmark has no tokens, bool ``[batch, pieces]``; None if there are none."""
        empty = self.size == 0
        return empty if empty.any() else None


def lay_out(keys: Cache, landmarks: Tensor, block: int, window: int) -> Layout | None:
    """The layout of the tokens of ``keys``; None if none of them is a landmark.

    Args:
        keys: facts of the tokens, ``[batch, time]``.
        landmarks: bool, ``[batch, time]``.
        block: tokens between two landmarks, assumed where tensors have no values.
        window: positions in a window.
    """
    batch, time = landmarks.shape
    t = np.arange(time)
    if isinstance(landmarks, FakeTensor) or landmarks.is_meta:
        position = np.broadcast_to(t, (batch, time))
        is_landmark = position % (block + 1) == block
        document = np.zeros_like(position)
        real = np.ones_like(is_landmark)
        if not is_landmark.any():
            return None
    else:
        is_landmark, position = landmarks.cpu().numpy(), keys.positions.cpu().numpy()
        if not is_landmark.any():
            return None
        document = np.zeros_like(position) if keys.documents is None else keys.documents.cpu().numpy()
        real = np.ones_like(is_landmark) if keys.padding is None else ~keys.padding.cpu().numpy()
        is_landmark = is_landmark & real
        if not is_landmark.any():
            return None

    order = np.argsort(~real, axis=1, kind="stable")
    count = real.sum(1)
    position, document, is_landmark = (np.take_along_axis(a, order, 1) for a in (position, document, is_landmark))
    real = t < count[:, None]

    starts = _differs(document)
    begins = starts.copy()
    begins[:, 1:] |= is_landmark[:, :-1]
    start = _last(begins)  # the first token of a token's block
    rank = t - start
    most = max(1, int(rank[is_landmark].max()))
    width = most + 1
    piece = (begins | ((rank % most == 0) & ~is_landmark)) & real
    pieces = int(piece.sum(1).max())
    piece = piece.cumsum(1) - 1 + (pieces - piece.sum(1))[:, None]
    place = piece * width + np.where(is_landmark, most, rank % most)
    first_of_block = piece - np.where(is_landmark, 0, rank // most)

    opens = starts | _differs(position // window)
    opening = _last(opens)

    places = pieces * width
    token = np.zeros((batch, places + 1), np.int64)
    hole = np.ones((batch, places + 1), bool)
    target = np.where(real, place, places)
    np.put_along_axis(token, target, order, 1)
    np.put_along_axis(hole, target, False, 1)
    first = np.tile(np.arange(pieces + 1), (batch, 1))
    np.put_along_axis(first, np.where(real, piece, pieces), first_of_block, 1)
    size = np.full((batch, pieces + 1), -1)
    np.put_along_axis(size, np.where(is_landmark, piece, pieces), rank, 1)
    return Layout(
        width=width,
        pieces=pieces,
        count=count,
        order=order,
        place=place,
        block=first_of_block,
        document=np.take_along_axis(piece, _last(starts), 1),
        local=np.take_along_axis(first_of_block, opening, 1),
        origin=np.take_along_axis(position, np.take_along_axis(start, opening, 1), 1),
        opens=opens,
        token=token[:, :-1],
        hole=hole[:, :-1],
        first=first[:, :-1],
        size=size[:, :-1],
        identity=bool((place == t).all() and real.all()),
    )


@dataclass(frozen=True)
class Windowed:
    """Tokens of one call that lie in the same window of their row, at most so many; arrays go by batch row.

    Args:
        index: which of the row's tokens, in the order of ``Layout.order``, ``[batch, rows]``; any at holes.
        valid: bool, ``[batch, rows]``.
        local: the first local piece, ``[batch]``.
        document: the first piece of the document, ``[batch]``.
        origin: the position at which the first local piece begins, ``[batch]``.
        last: the last local piece that a query of any row sees.
    """

    index: Ints
    valid: Ints
    local: Ints
    document: Ints
    origin: Ints
    last: int


def windows(layout: Layout, new: Ints, most: int) -> list[Windowed]:
    """The last ``new`` ``[batch]`` tokens of each row by windows, at most ``most`` at a time."""
    batch, time = layout.order.shape
    begin, found = layout.count - new, []
    number = layout.opens.cumsum(1)
    while (begin < layout.count).any():
        at = np.minimum(begin, time - 1)[:, None]
        end = [np.searchsorted(number[row], number[row, at[row, 0]], "right") for row in range(batch)]
        length = np.maximum(np.minimum(end, layout.count) - begin, 0)
        rows = min(int(length.max()), most)
        index = np.minimum(begin[:, None] + np.arange(rows), time - 1)
        valid = np.arange(rows) < length[:, None]
        local, document, origin = (
            np.where(length > 0, np.take_along_axis(a, at, 1)[:, 0], 0)
            for a in (layout.local, layout.document, layout.origin)
        )
        last = int((np.take_along_axis(layout.place, index, 1) // layout.width - local[:, None])[valid].max())
        found.append(Windowed(index, valid, local, document, origin, last))
        begin = begin + np.minimum(length, rows)
    return found


def on(device: torch.device, array: Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _differs(values: Ints) -> Ints:
    """Where a value is the first of its row or not the one before it, bool."""
    differs = np.ones(values.shape, bool)
    differs[:, 1:] = values[:, 1:] != values[:, :-1]
    return differs


def _last(flags: Ints) -> Ints:
    """Index of the last flag at or before each place of its row."""
    return np.maximum.accumulate(np.where(flags, np.arange(flags.shape[1]), 0), axis=1)
