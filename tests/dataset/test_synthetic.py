import itertools

import numpy as np
import pytest
import torch

from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.synthetic import Examples, Synthetic, generator
from lcbench.errors import ConfigurationError
from lcbench.task.base import Task
from lcbench.task.counting import Counting
from lcbench.task.flip_flop import FlipFlop
from lcbench.task.mqar import MQAR
from lcbench.task.passkey import Passkey
from lcbench.task.selective_copy import SelectiveCopy
from lcbench.task.selective_copy_mamba import SelectiveCopyMamba

every_task = pytest.mark.parametrize(
    "task",
    [FlipFlop(), SelectiveCopy(), SelectiveCopyMamba(), Counting(variables=3), MQAR(), Passkey()],
    ids=lambda task: type(task).__name__,
)


def same(a: Batch, b: Batch) -> bool:
    """Whether all tensors of two batches agree."""
    pairs = [(a.tokens, b.tokens), (a.targets, b.targets), (a.scored, b.scored), (a.supervised, b.supervised)]
    padding = [torch.zeros_like(each.scored) if each.padding is None else each.padding for each in (a, b)]
    facts = [(a.facts[name], b.facts[name]) for name in a.facts]
    return a.facts.keys() == b.facts.keys() and all(
        torch.equal(x, y) for x, y in [*pairs, (padding[0], padding[1]), *facts]
    )


def examples_of(batches: list[Batch]) -> list[tuple[list[int], list[int]]]:
    """Per example, its tokens without padding and its answers."""
    found = []
    for batch in batches:
        for row in range(len(batch)):
            kept = slice(None) if batch.padding is None else ~batch.padding[row]
            found.append((batch.tokens[row, kept].tolist(), batch.targets[row, batch.scored[row]].tolist()))
    return found


@every_task
@pytest.mark.parametrize("size", [None, 1500])
def test_examples_do_not_depend_on_the_batch_size(task: Task, size: int | None) -> None:
    whole = examples_of([Synthetic(task, 3, 2100, size=size).batch(0)])
    for batch_size in (7, 64, 1000):
        dataset = Synthetic(task, 3, batch_size, size=size)
        some = examples_of([dataset.batch(index) for index in range(2100 // batch_size)])
        assert some == whole[: len(some)]


@every_task
def test_a_batch_does_not_depend_on_what_was_asked_before(task: Task) -> None:
    for size in (None, 100):
        dataset = Synthetic(task, 0, 48, size=size)
        for index in (40, 3, 22, 3):
            assert same(dataset.batch(index), Synthetic(task, 0, 48, size=size).batch(index))


@every_task
def test_evaluation_does_not_depend_on_the_batch_size(task: Task) -> None:
    for name in (*task.evaluation_sets, "length_4x"):
        whole = examples_of([Examples(task, 1, name).take(0, 1100)])
        assert len(whole) == 1100
        for batch_size in (1, 96):
            rows = Examples(task, 1, name, 100)
            batches = [rows.take(*ends) for ends in rows.batches(batch_size)]
            assert [len(batch) for batch in batches] == [batch_size] * (100 // batch_size) + [
                rest for rest in [100 % batch_size] if rest
            ]
            assert examples_of(batches) == whole[:100]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("size", [None, 700])
def test_batches_do_not_depend_on_the_workers(workers: int, size: int | None) -> None:
    task = Counting()
    alone = Synthetic(task, 5, 100, size=size)
    together = Synthetic(task, 5, 100, size=size, workers=workers)
    batches = list(together.loader(7, 33))
    assert len(batches) == len(together.loader(7, 33)) == 26
    for index, batch in enumerate(batches, 7):
        assert same(batch, alone.batch(index))
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_without_end_begins_where_it_is_told_and_begins_again(workers: int) -> None:
    dataset = Synthetic(FlipFlop(), 5, 64, workers=workers)
    loader = dataset.loader(20)
    for _ in range(2):
        for index, batch in enumerate(itertools.islice(loader, 5), 20):
            assert same(batch, dataset.batch(index))
    with pytest.raises(TypeError):
        len(loader)


def test_a_stream_does_not_repeat_and_a_fixed_set_repeats_every_epoch() -> None:
    task = FlipFlop()
    stream = examples_of([Synthetic(task, 0, 500).batch(index) for index in range(5)])
    assert len({str(example) for example in stream}) == 2500

    dataset = Synthetic(task, 0, 64, size=100)
    visited = [str(example) for example in examples_of([dataset.batch(index) for index in range(25)])]
    epochs = [visited[start : start + 100] for start in range(0, 1600, 100)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(epochs[0])
        assert len(set(epoch)) == 100
    assert len({tuple(epoch) for epoch in epochs}) == 16, "each epoch has an order of its own"
    assert set(epochs[0]) == {str(example) for example in stream[:100]}
    assert all(len(dataset.batch(index)) == 64 for index in range(10))


def test_a_fixed_set_smaller_than_a_batch() -> None:
    batch = Synthetic(FlipFlop(), 0, 64, size=10).batch(1)
    assert len(batch) == 64
    assert len({str(example) for example in examples_of([batch])}) == 10


def test_sets_and_seeds_share_no_example() -> None:
    task = FlipFlop()
    drawn = [
        str(example)
        for seed in (0, 1)
        for name in (TRAIN, "in_distribution", "sparse_length_64", "dense")
        for example in examples_of([Examples(task, seed, name).take(0, 1500)])
    ]
    # Sparse strings of 64 tokens hold 31 free bits and more: a repeat among so few is not expected.
    assert len(set(drawn)) == len(drawn)


def test_blocks_use_counters_that_never_meet() -> None:
    keys = set()
    for seed in (0, 1, 2**64 - 1):
        for name in (TRAIN, "in_distribution", "sparse"):
            for block in (0, 1, 10**6):
                state = generator(seed, name, block).bit_generator.state["state"]
                keys.add((*state["key"].tolist(), *state["counter"].tolist()))
                assert state["counter"].tolist() == [0, 0, 0, block]
    assert len(keys) == 27


def test_blocks_of_long_examples_are_small() -> None:
    task = FlipFlop()
    assert Examples(task, 0, TRAIN).block_size == 1024
    assert Examples(task, 0, "length_4k").block_size == 128
    assert Examples(task, 0, "length_1M").block_size == 1
    batch = Examples(task, 0, "length_100k").take(3, 6)
    assert tuple(batch.tokens.shape) == (3, 99_999)


def test_padding_is_cut_to_the_batch() -> None:
    dataset = Synthetic(Counting(), 0, 8)
    widths = set()
    for index in range(20):
        batch = dataset.batch(index)
        widths.add(batch.tokens.shape[1])
        assert batch.padding is not None
        assert not batch.padding[:, -1].all()
    assert len(widths) > 1


def test_narrow_storage_loses_nothing() -> None:
    task = MQAR(vocabulary_size=70_000)
    fixed = Synthetic(task, 0, 50, size=50).batch(0)
    stream = Synthetic(task, 0, 50).batch(0)
    assert sorted(examples_of([fixed])) == sorted(examples_of([stream]))
    assert int(fixed.tokens.max()) > 2**16


def test_order_is_a_function_of_seed_and_epoch() -> None:
    one, two = (Synthetic(FlipFlop(), seed, 50, size=50) for seed in (0, 1))
    assert same(one.batch(3), Synthetic(FlipFlop(), 0, 50, size=50).batch(3))
    assert not np.array_equal(one._epoch_order(0, 50), two._epoch_order(0, 50))
    assert not np.array_equal(one._epoch_order(0, 50), one._epoch_order(1, 50))


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((0, 0), {}, "trainer.batch_size=0"),
        ((0, 8), {"size": 0}, "dataset.size=0"),
        ((0, 8), {"workers": -1}, "dataset.workers=-1"),
        ((-1, 8), {}, "seed=-1"),
    ],
)
def test_mistakes(arguments: tuple[int, int], options: dict, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Synthetic(FlipFlop(), *arguments, **options)
