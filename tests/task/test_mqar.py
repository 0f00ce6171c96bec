import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.dataset.base import TRAIN, Batch
from lcbench.errors import ConfigurationError
from lcbench.task.mqar import MQAR
from tests.oracles import mqar as oracle
from tests.oracles.statistics import chi_square, deviation, difference


def rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    targets = batch.targets.masked_fill(~batch.scored, -1)
    return list(zip(batch.tokens.tolist(), targets.tolist(), strict=True))


def slots(batch: Batch, pairs: int) -> np.ndarray:
    """The slot of each key's query, in the order in which the keys are defined: ``[batch, pairs]``."""
    keys = batch.tokens[:, 0 : 2 * pairs : 2]
    asked = (batch.tokens[:, None, 2 * pairs :] == keys[:, :, None]).long().argmax(2)
    return (asked // 2).numpy()


@given(
    pairs=st.integers(1, 12),
    more=st.integers(0, 20),
    size=st.sampled_from([32, 33, 64, 300]),
    skew=st.sampled_from([0.01, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_every_row_is_as_defined(pairs: int, more: int, size: int, skew: float, seed: int) -> None:
    length = 4 * pairs + 2 * more
    task = MQAR(length=length, pairs=pairs, vocabulary_size=size, skew=skew)
    batch = task.sample(np.random.default_rng(seed), 6, TRAIN)
    for tokens, targets in rows(batch):
        oracle.check(tokens, targets, pairs, size)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_random_filler_changes_the_filler_alone(seed: int) -> None:
    task = MQAR(filler="random", vocabulary_size=64)
    batch = task.sample(np.random.default_rng(seed), 6, TRAIN)
    assert batch.tokens[:, 8:].eq(0).float().mean() < 0.2
    blanked = batch.tokens.clone()
    blanked[:, 8:] *= batch.scored[:, 8:]
    for tokens, targets in rows(Batch(blanked, batch.targets, batch.scored, batch.scored)):
        oracle.check(tokens, targets, 4, 64)
    assert torch.equal(task.solve(batch.tokens)[batch.scored], batch.targets[batch.scored])


@pytest.mark.parametrize(
    ("tokens", "targets", "reason"),
    [
        ([1, 9, 1, 8, 1, 0, 1, 0], [-1] * 4 + [9, -1, 9, -1], "repeat"),
        ([1, 2, 3, 8, 1, 0, 3, 0], [-1] * 4 + [2, -1, 8, -1], "among"),
        ([1, 9, 2, 8, 1, 0, 2, 0], [-1] * 4 + [8, -1, 8, -1], "not the value"),
        ([1, 9, 2, 8, 1, 0, 1, 0], [-1] * 4 + [9, -1, 9, -1], "asked once"),
        ([1, 9, 2, 8, 0, 1, 2, 0], [-1] * 5 + [9, 8, -1], "second token"),
        ([1, 9, 2, 8, 1, 0, 2, 0], [9, -1, -1, -1, 9, -1, 8, -1], "nothing is asked"),
    ],
)
def test_the_checker_rejects_broken_rows(tokens: list[int], targets: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        oracle.check(tokens, targets, 2, 16)
    oracle.check([1, 9, 2, 8, 2, 0, 1, 0], [-1] * 4 + [8, -1, 9, -1], 2, 16)


@pytest.mark.parametrize("skew", [0.01, 0.5, 1.0])
def test_the_first_drawn_slot_follows_the_power_law(skew: float) -> None:
    batch = MQAR(skew=skew).sample(np.random.default_rng(0), 30_000, TRAIN)
    first = np.bincount(slots(batch, 4)[:, 0], minlength=28)
    weights = [(slot + 1) ** (skew - 1) for slot in range(28)]
    assert abs(chi_square(first.tolist(), weights)) < 4


def test_four_slots_hold_half_of_the_queries_weight() -> None:
    batch = MQAR().sample(np.random.default_rng(1), 20_000, TRAIN)
    near = (slots(batch, 4)[:, 0] < 4).sum()
    assert abs(deviation(near, 20_000, 0.53)) < 6


def test_slots_are_drawn_as_one_after_another_without_replacement() -> None:
    """Each key's slot, and pairs of them, against the literal generator."""
    batch = MQAR(length=16, pairs=3).sample(np.random.default_rng(2), 20_000, TRAIN)
    ours = slots(batch, 3)
    rng = random.Random(0)
    literal = []
    for _ in range(10_000):
        tokens, targets = oracle.generate(rng, 16, 3, 256, 0.01)
        oracle.check(tokens, targets, 3, 256)
        literal.append([(tokens.index(tokens[2 * key], 6) - 6) // 2 for key in range(3)])
    theirs = np.array(literal)
    code = np.array([25, 5, 1])
    a, b = (np.bincount(each @ code, minlength=125).tolist() for each in (ours, theirs))
    assert abs(difference(a, b)) < 4


def test_keys_and_values_are_uniform() -> None:
    batch = MQAR(vocabulary_size=33).sample(np.random.default_rng(3), 20_000, TRAIN)
    for start, low, high in ((0, 1, 16), (1, 16, 33)):
        counts = np.bincount(batch.tokens[:, start].numpy(), minlength=33)
        assert counts[:low].sum() + counts[high:].sum() == 0
        assert abs(chi_square(counts[low:high].tolist(), [1.0] * (high - low))) < 4


def test_permuting_the_pairs_leaves_the_answers() -> None:
    task = MQAR()
    batch = task.sample(np.random.default_rng(4), 50, TRAIN)
    order = torch.tensor([2, 0, 3, 1])
    tokens = batch.tokens.clone()
    tokens[:, :8] = tokens[:, :8].view(-1, 4, 2)[:, order].reshape(-1, 8)
    assert torch.equal(task.solve(tokens)[batch.scored], batch.targets[batch.scored])


def test_sets() -> None:
    task = MQAR()
    for name, length, pairs in (("length_2x", 128, 8), ("length_256", 256, 16), ("pairs_16_length_1k", 1000, 16)):
        batch = task.sample(np.random.default_rng(5), 3, name)
        assert tuple(batch.tokens.shape) == (3, length)
        assert (batch.scored.sum(1) == pairs).all()
    assert task.at("pairs_16_length_128", 256) == "pairs_16_length_256"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pairs": 17}, "task.pairs=17 do not fit a length of 64, since a pair takes 4 tokens; .* task.pairs=16"),
        ({"pairs": 0}, "task.pairs=0 leaves nothing"),
        ({"length": 63}, "task.length=63 is not even; .* task.length=64"),
        ({"vocabulary_size": 8}, "task.vocabulary_size=8 has no 4 different keys; .* task.vocabulary_size=10"),
        ({"vocabulary_size": 2}, "task.vocabulary_size=2"),
    ],
)
def test_mistakes(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        MQAR(**options)


def test_more_pairs_than_fit_an_evaluation_set() -> None:
    with pytest.raises(ConfigurationError, match=r"takes 4 tokens \(in evaluation set pairs_99"):
        MQAR().token_length("pairs_99_length_256")
