"""The situations a layer must bear, as contexts: whole sequences, packed documents, padding, jumping positions.

Every token of every document whose place is 5 modulo 6 is a landmark; a mechanism without landmarks ignores that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lcbench.attention.base import Context

#: ordinary tokens between two landmarks
BLOCK = 5


def landmarks(positions: Tensor) -> Tensor:
    """One landmark after every ``BLOCK`` tokens of a document; ``positions`` and result ``[batch, time]``."""
    return positions % (BLOCK + 1) == BLOCK


def whole(batch: int, length: int, start: int = 0) -> Context:
    """One document a row, from position ``start``."""
    positions = torch.arange(start, start + length).repeat(batch, 1)
    return Context(positions=positions, landmarks=landmarks(positions))


def packed(batch: int, length: int, generator: torch.Generator) -> Context:
    """Documents one after the other, cut elsewhere in every row; some hold one token, some numbers are left out
    (empty documents)."""
    starts = torch.rand(batch, length, generator=generator) < 3 / length
    starts[:, 0] = True
    for row in range(batch):
        middle = length // 3 + 2 * row
        starts[row, middle : middle + 2] = True  # the document that starts at `middle` holds one token
    times = torch.arange(length).expand(batch, length)
    positions = times - torch.where(starts, times, 0).cummax(1).values
    steps = torch.randint(1, 4, (batch, length), generator=generator)
    return Context(
        positions=positions,
        documents=torch.where(starts, steps, 0).cumsum(1),
        landmarks=landmarks(positions),
    )


def padded(batch: int, length: int) -> Context:
    """Row 0 is padded on the left, row 1 on the right, row 2 not at all, and so on; positions count tokens that are
    not padding."""
    padding = torch.zeros(batch, length, dtype=torch.bool)
    padding[0::3, : length // 6 + 1] = True
    padding[1::3, -(length // 5 + 1) :] = True
    return with_padding(padding)


def ragged(batch: int, length: int, generator: torch.Generator) -> Context:
    """Padding anywhere, as when rows of a stream get different numbers of tokens a chunk; the last row is nothing
    but padding."""
    padding = torch.rand(batch, length, generator=generator) < 0.4
    padding[-1] = True
    return with_padding(padding, consecutive=False)


def with_padding(padding: Tensor, consecutive: bool = True) -> Context:
    """A document a row, its tokens where ``padding`` ``[batch, time]`` is False."""
    positions = ((~padding).cumsum(1) - 1).clamp(min=0)
    return Context(
        positions=positions,
        padding=padding,
        landmarks=landmarks(positions) & ~padding,
        consecutive=consecutive,
    )


def jumping(batch: int, length: int, generator: torch.Generator) -> Context:
    """Positions that advance by one or two, differently in every row."""
    steps = torch.randint(1, 3, (batch, length), generator=generator)
    positions = steps.cumsum(1) - 1
    places = torch.arange(length).repeat(batch, 1)
    return Context(positions=positions, landmarks=landmarks(places), consecutive=False)


def valid(context: Context) -> Tensor:
    """Where tokens are not padding, ``[batch, time]``."""
    return torch.ones_like(context.positions, dtype=torch.bool) if context.padding is None else ~context.padding
