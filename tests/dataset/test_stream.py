"""Streams: the pieces of an example, in order, are the example."""

from __future__ import annotations

import pytest
import torch

from lcbench.dataset.stream import Stream
from lcbench.dataset.synthetic import Synthetic
from lcbench.errors import ConfigurationError
from lcbench.task.counting import Counting
from lcbench.task.flip_flop import FlipFlop


@pytest.mark.parametrize("tokens", [1, 5, 15, 40])
def test_pieces_put_together_are_the_examples(tokens: int) -> None:
    task = FlipFlop(length=16)
    stream, whole = Stream(task, 3, 4, tokens=tokens), Synthetic(task, 3, 4)
    for number in (0, 1, 7):
        parts = [stream.batch(number * stream.pieces + i) for i in range(stream.pieces)]
        expected = whole.batch(number)
        for name in ("tokens", "targets", "scored", "supervised"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts], 1), getattr(expected, name))
        assert [part.continues for part in parts] == [i > 0 for i in range(stream.pieces)]


def test_shorter_examples_end_in_padding_and_every_piece_has_a_place() -> None:
    task = Counting(length=24)
    stream, whole = Stream(task, 0, 2, tokens=4), Synthetic(task, 0, 2)
    for number in range(20):
        parts = [stream.batch(number * stream.pieces + i) for i in range(stream.pieces)]
        assert all(part.tokens.shape[1] for part in parts)
        expected = whole.batch(number).padded_to(stream.time)
        assert torch.equal(torch.cat([part.tokens for part in parts], 1), expected.tokens)
        if expected.padding is not None:
            assert torch.equal(torch.cat([part.padding for part in parts], 1), expected.padding)


def test_workers_deliver_the_same() -> None:
    task = FlipFlop(length=16)
    alone, helped = Stream(task, 1, 4, tokens=6), Stream(task, 1, 4, tokens=6, workers=2)
    for a, b in zip(alone.loader(2, 9), helped.loader(2, 9), strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert a.continues == b.continues


def test_an_empty_piece_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="closest that works is 1"):
        Stream(FlipFlop(length=16), 0, 4, tokens=0)
