"""Segments: the rows of an example, in order, are the example, and every row says which it is of."""

from __future__ import annotations

import pytest
import torch

from lcbench.dataset.base import Batch
from lcbench.dataset.segments import Segments
from lcbench.dataset.stream import Stream
from lcbench.dataset.synthetic import Synthetic
from lcbench.errors import ConfigurationError
from lcbench.task.counting import Counting
from lcbench.task.flip_flop import FlipFlop


def joined(batches: list[Batch], document: int, name: str) -> torch.Tensor:
    """The rows of ``document``, put together in the order of their segments."""
    rows = []
    for batch in batches:
        for row in range(len(batch)):
            if int(batch.facts["document"][row]) == document:
                rows.append((int(batch.facts["segment"][row]), getattr(batch, name)[row]))
    assert [place for place, _ in sorted(rows, key=lambda pair: pair[0])] == list(range(len(rows)))
    return torch.cat([tensor for _, tensor in sorted(rows, key=lambda pair: pair[0])])


@pytest.mark.parametrize(("tokens", "segments", "size"), [(15, 1, None), (5, 3, None), (5, 1, None), (4, 2, 7)])
def test_rows_put_together_are_the_examples(tokens: int, segments: int, size: int | None) -> None:
    task, examples = FlipFlop(length=16), 4
    dataset = Segments(task, 3, examples * segments, tokens=tokens, segments=segments, size=size)
    whole, groups = Synthetic(task, 3, examples, size=size), dataset.pieces // segments
    for number in (0, 1, 5):
        batches = [dataset.batch(number * groups + i) for i in range(groups)]
        assert all(len(batch) == examples * segments for batch in batches)
        expected = whole.batch(number)
        for row, document in enumerate(whole.numbers(number).tolist()):
            for name in ("tokens", "targets", "scored", "supervised"):
                ours, theirs = joined(batches, document, name), getattr(expected, name)[row]
                assert torch.equal(ours[: len(theirs)], theirs)
                assert name in ("tokens", "targets") or not ours[len(theirs) :].any()


def test_what_is_beyond_an_end_is_padding() -> None:
    task = Counting(length=24)
    dataset, whole = Segments(task, 0, 12, tokens=4), Synthetic(task, 0, 2)
    for number in range(10):
        batch, expected = dataset.batch(number), whole.batch(number)
        lengths = [len(expected.tokens[0])] * 2 if expected.padding is None else (~expected.padding).sum(1).tolist()
        assert batch.padding is not None
        for row, document in enumerate(whole.numbers(number).tolist()):
            assert int((~joined([batch], document, "padding")).sum()) == lengths[row]


def test_workers_deliver_the_same() -> None:
    task = FlipFlop(length=16)
    alone, helped = Segments(task, 1, 6, tokens=5), Segments(task, 1, 6, tokens=5, workers=2)
    for a, b in zip(alone.loader(2, 9), helped.loader(2, 9), strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert all(torch.equal(a.facts[name], b.facts[name]) for name in alone.facts)


@pytest.mark.parametrize(("tokens", "rows"), [(5, 5), (4, 4), (40, 15)])
def test_the_longest_row_is_known(tokens: int, rows: int) -> None:
    for dataset in (
        Segments(FlipFlop(length=16), 0, 12, tokens=tokens),
        Stream(FlipFlop(length=16), 0, 4, tokens=tokens),
    ):
        assert dataset.longest == dataset.batch(0).tokens.shape[1] == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "closest that works is 1"),
        ({"tokens": 4, "segments": 3}, "segments=3 does not divide the 4 .* works is 2"),
        ({"tokens": 4, "segments": 0}, "segments=0 .* works is 1"),
        ({"tokens": 5}, "batch_size=4 is no multiple of the 3 .* works is 3"),
    ],
)
def test_numbers_that_do_not_divide_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Segments(FlipFlop(length=16), 0, 4, **options)
