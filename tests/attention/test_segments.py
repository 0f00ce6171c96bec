"""Cutting calls into segments of documents: every token in the piece of its segment, whatever the rows do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lcbench.attention.base import Context
from lcbench.attention.segments import Reached, Segments
from lcbench.conformance import situations
from lcbench.conformance.subject import piece

TIME, LENGTH = 31, 4


def contexts() -> dict[str, Context]:
    generator = torch.Generator().manual_seed(0)
    packed = situations.packed(3, TIME, generator)
    padding = torch.rand(3, TIME, generator=generator) < 0.3
    return {
        "whole": situations.whole(3, TIME),
        "far": situations.whole(3, TIME, 1001),
        "told apart": dataclasses.replace(situations.whole(3, TIME), consecutive=False),
        "packed": packed,
        "packed and padded": dataclasses.replace(packed, padding=padding, consecutive=False),
        "padded": situations.padded(3, TIME),
        "ragged": situations.ragged(3, TIME, generator),
        "jumping": situations.jumping(3, TIME, generator),
    }


def in_row(flag: bool | Tensor, row: int) -> bool:
    return flag if isinstance(flag, bool) else bool(flag[row])


def histories(context: Context, cuts: Sequence[int]) -> list[list[tuple[str, tuple[int, int] | None]]]:
    """Per row, what the pieces say in order: opened, cleared, and the tokens read, as (time, position)."""
    rows: list[list[tuple[str, tuple[int, int] | None]]] = [[] for _ in range(3)]
    reached: Reached | None = None
    for start, stop in pairwise([0, *cuts, TIME]):
        part = piece(context, start, stop)
        segments = Segments(part, LENGTH, reached)
        # a token's time, from 1: zero is a slot without a token
        times = torch.arange(start + 1, stop + 1, dtype=torch.float64).expand(3, 1, -1)[..., None]
        for one, numbers in zip(segments.pieces, segments.split(times), strict=True):
            for row, history in enumerate(rows):
                opens, clears = (
                    flag if isinstance(flag, bool) else bool(flag[row]) for flag in (one.opens, one.clears)
                )
                if clears:
                    history.append(("clear", None))
                if opens:
                    history.append(("open", None))
                for slot, time in enumerate(numbers[row, 0, :, 0].long().tolist()):
                    if time:
                        assert one.padding is None or not one.padding[row, slot]
                        history.append(("token", (time - 1, int(one.positions[row, slot]))))
                    else:
                        assert one.padding is not None
                        assert one.padding[row, slot]
        reached = segments.reached
    return rows


def expected(context: Context, row: int) -> list[tuple[str, tuple[int, int] | None]]:
    """The same, told token by token."""
    history: list[tuple[str, tuple[int, int] | None]] = []
    before: tuple[int, int] | None = None
    for time in range(TIME):
        if context.padding is not None and bool(context.padding[row, time]):
            continue
        position = int(context.positions[row, time])
        document = 0 if context.documents is None else int(context.documents[row, time])
        now = (document, position // LENGTH)
        if before is None or before[0] != document:
            history.append(("clear", None))
        if before != now:
            history.append(("open", None))
        before = now
        history.append(("token", (time, position)))
    return history


@pytest.mark.parametrize("name", contexts())
@pytest.mark.parametrize("cuts", [[], [1], [9, 10], [4, 8, 20], list(range(1, TIME))])
def test_pieces_tell_every_rows_own_history(name: str, cuts: list[int]) -> None:
    context = contexts()[name]
    told = histories(context, cuts)
    for row in range(3):
        whole = expected(context, row)
        ours = told[row]
        if name == "far":
            # rows that are alike and begin in the middle of a segment have nothing to open
            ours, whole = ([step for step in steps if step[0] == "token"] for steps in (ours, whole))
        assert ours == whole


@pytest.mark.parametrize("name", contexts())
def test_join_undoes_split(name: str) -> None:
    context = contexts()[name]
    x = torch.randn(3, 2, TIME, 5)
    segments = Segments(context, LENGTH, None)
    padding = torch.zeros(3, TIME, dtype=torch.bool) if context.padding is None else context.padding
    assert torch.equal(segments.join(segments.split(x)), x.masked_fill(padding[:, None, :, None], 0))


@pytest.mark.parametrize("name", contexts())
def test_pieces_are_no_wider_than_a_row_needs(name: str) -> None:
    segments = Segments(contexts()[name], LENGTH, None)
    for one, width in zip(segments.pieces, segments.widths, strict=True):
        assert one.positions.shape[1] == width <= LENGTH
        if one.padding is not None and width > 1:
            assert bool((~one.padding).sum(1).max() == width)


def test_a_row_that_is_reset_starts_afresh() -> None:
    context = situations.whole(2, 6)
    reached = Segments(context, LENGTH, None).reached.reset(torch.tensor([True, False]))
    after: Tensor = torch.stack([torch.arange(3), torch.arange(6, 9)])
    segments = Segments(Context(positions=after), LENGTH, reached)
    first = segments.pieces[0]
    assert first.clears.tolist() == [True, False]
    assert first.opens.tolist() == [True, False]
    assert segments.reached.position.tolist() == [2, 8]
