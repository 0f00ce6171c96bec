import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.dataset.base import TRAIN, Batch
from lcbench.errors import ConfigurationError
from lcbench.task.flip_flop import FlipFlop
from tests.oracles import flip_flop as oracle
from tests.oracles.statistics import chi_square, deviation

WORDS = FlipFlop.vocabulary


def strings(batch: Batch) -> list[list[str]]:
    whole = torch.cat([batch.tokens, batch.targets[:, -1:]], 1)
    return [[WORDS[token] for token in row] for row in whole.tolist()]


def pairs_of(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    whole = torch.cat([batch.tokens, batch.targets[:, -1:]], 1).numpy()
    return whole[:, 0::2], whole[:, 1::2] - 3


@given(
    pairs=st.integers(2, 40),
    p_ignore=st.sampled_from([0.0, 0.1, 0.5, 0.98, 1.0]),
    seed=st.integers(0, 1000),
    name=st.sampled_from([TRAIN, "sparse", "dense", "sparse_length_2x", "length_4x"]),
)
@settings(max_examples=60, deadline=None)
def test_every_string_is_in_the_language_and_scored_at_its_reads(
    pairs: int, p_ignore: float, seed: int, name: str
) -> None:
    task = FlipFlop(length=2 * pairs, p_ignore=p_ignore)
    batch = task.sample(np.random.default_rng(seed), 8, name)
    assert batch.tokens.shape[1] + 1 == task.token_length(name)
    for row, string in enumerate(strings(batch)):
        oracle.check(string)
        places = [place for place, _, _ in oracle.reads(string)]
        bits = [bit for _, bit, _ in oracle.reads(string)]
        assert batch.scored[row].nonzero()[:, 0].tolist() == places
        assert [WORDS[target] for target in batch.targets[row, places]] == bits


@pytest.mark.parametrize(
    ("string", "reason"),
    [
        ("w0i1r", "odd"),
        ("i0w1r1", "begin"),
        ("w0i1w1", "end"),
        ("w0i1w1i0r0", "not return"),
        ("w0i1r1", "not return"),
        ("ww1r1r", "not pairs"),
    ],
)
def test_the_checker_rejects_broken_strings(string: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        oracle.check(list(string))
    oracle.check(list("w0i1w1i0r1"))


@pytest.mark.parametrize(("name", "p"), [("in_distribution", 0.8), ("dense", 0.1), ("sparse", 0.98)])
def test_instructions_and_bits_have_their_probabilities(name: str, p: float) -> None:
    batch = FlipFlop(length=512).sample(np.random.default_rng(0), 2000, name)
    instructions, bits = pairs_of(batch)
    assert (instructions[:, 0] == 0).all()
    assert (instructions[:, -1] == 1).all()
    inner = instructions[:, 1:-1]
    for instruction, probability in ((0, (1 - p) / 2), (1, (1 - p) / 2), (2, p)):
        assert abs(deviation((inner == instruction).sum(), inner.size, probability)) < 4
    free = bits[instructions != 1]
    assert abs(deviation(free.sum(), free.size, 0.5)) < 4
    # Neighbouring free bits, and a bit and its instruction, are independent.
    neighbours = (instructions[:, :-1] != 1) & (instructions[:, 1:] != 1)
    equal = (bits[:, :-1] == bits[:, 1:])[neighbours]
    assert abs(deviation(equal.sum(), equal.size, 0.5)) < 4
    written = bits[:, 1:-1][inner == 0]
    assert abs(deviation(written.sum(), written.size, 0.5)) < 4
    # 254 p_r + 1 reads a string.
    assert abs(deviation(batch.scored.sum().item() - 2000, 2000 * 254, (1 - p) / 2)) < 4


@pytest.mark.parametrize(("name", "p"), [("in_distribution", 0.8), ("sparse", 0.98)])
def test_the_last_reads_distance_is_geometric_and_truncated(name: str, p: float) -> None:
    batch = FlipFlop(length=64).sample(np.random.default_rng(1), 20_000, name)
    instructions, _ = pairs_of(batch)
    latest = 31 - np.where(instructions == 0, np.arange(32), 0).max(1)
    p_write = (1 - p) / 2
    expected = [p_write * (1 - p_write) ** (d - 1) for d in range(1, 31)] + [(1 - p_write) ** 30]
    assert abs(chi_square(np.bincount(latest, minlength=32)[1:].tolist(), expected)) < 4


def test_repeating_the_last_bit_errs_as_often_as_ignores_come() -> None:
    task = FlipFlop(length=512)
    for name, error in (("in_distribution", 0.4), ("dense", 0.05), ("sparse", 0.49)):
        batch = task.sample(np.random.default_rng(2), 3000, name)
        wrong = task.outcomes(batch, batch.tokens.roll(1, 1))["error"].float().mean().item()
        assert wrong == pytest.approx(error, abs=0.015)


def test_distances_and_final_reads() -> None:
    task = FlipFlop(length=512)
    batch = task.sample(np.random.default_rng(3), 200, "in_distribution")
    predictions = torch.from_numpy(np.random.default_rng(4).integers(3, 5, tuple(batch.tokens.shape)))
    outcomes = task.outcomes(batch, predictions)
    expected: dict[str, list[bool]] = {}
    final = []
    for row, string in enumerate(strings(batch)):
        for place, bit, distance in oracle.reads(string):
            wrong = WORDS[predictions[row, place]] != bit
            low = 1
            while 2 * low <= distance:
                low *= 2
            name = "1" if low == 1 else f"{low}_{2 * low - 1}"
            expected.setdefault(f"error/distance_{name}", []).append(wrong)
        final.append(wrong)
    assert outcomes["final_read_error"].tolist() == final
    assert {name for name in outcomes if "distance" in name} >= set(expected)
    for name, wrong in expected.items():
        assert outcomes[name].tolist() == wrong
    assert sum(len(outcomes[name]) for name in outcomes if "distance" in name) == len(outcomes["error"])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_ignored_bits_change_nothing_and_written_bits_the_reads_up_to_the_next_write(seed: int) -> None:
    task = FlipFlop(length=64)
    batch = task.sample(np.random.default_rng(seed), 1, "in_distribution")
    solved = task.solve(batch.tokens)
    rng = random.Random(seed)
    tokens = batch.tokens.clone()
    ignored = (tokens[0, :-1] == 2).nonzero()[:, 0] + 1
    tokens[0, ignored] = 7 - tokens[0, ignored]
    assert torch.equal(task.solve(tokens)[batch.scored], solved[batch.scored])
    writes = (batch.tokens[0] == 0).nonzero()[:, 0].tolist()
    write = rng.choice(writes)
    following = min([later for later in writes if later > write], default=64)
    tokens = batch.tokens.clone()
    tokens[0, write + 1] = 7 - tokens[0, write + 1]
    flipped = (task.solve(tokens) != solved)[0] & batch.scored[0]
    expected = batch.scored[0] & (torch.arange(63) > write) & (torch.arange(63) < following)
    assert torch.equal(flipped, expected)


def test_most_recent_write_not_most_recent_pair() -> None:
    task = FlipFlop(length=10)
    tokens = torch.tensor([[WORDS.index(word) for word in "w0i1w1i0r"]])
    assert WORDS[task.solve(tokens)[0, -1]] == "1"


def test_in_distribution_at_p_098_is_sparse() -> None:
    one = FlipFlop(p_ignore=0.98).sample(np.random.default_rng(7), 100, "in_distribution")
    two = FlipFlop().sample(np.random.default_rng(7), 100, "sparse")
    assert torch.equal(one.tokens, two.tokens)


def test_a_list_of_probabilities_is_a_mixture_over_strings() -> None:
    batch = FlipFlop(length=512, p_ignore=[0.1, 0.9]).sample(np.random.default_rng(8), 2000, TRAIN)
    share = (pairs_of(batch)[0] == 2).mean(1)
    assert ((share < 0.25) | (share > 0.75)).all()
    assert abs(deviation((share < 0.5).sum(), 2000, 0.5)) < 4


def test_the_loss_is_at_reads_or_everywhere() -> None:
    clean = FlipFlop().sample(np.random.default_rng(9), 10, TRAIN)
    noisy = FlipFlop(loss="noisy").sample(np.random.default_rng(9), 10, TRAIN)
    assert torch.equal(clean.supervised, clean.scored)
    assert noisy.supervised.all()
    assert torch.equal(clean.scored, noisy.scored)


def test_chance_of_a_string() -> None:
    task = FlipFlop(length=16, p_ignore=0.5)
    batch = task.sample(np.random.default_rng(10), 20_000, "in_distribution")
    guesses = torch.from_numpy(np.random.default_rng(11).integers(3, 5, tuple(batch.tokens.shape)))
    outcomes = task.outcomes(batch, guesses)
    for name, chance in task.chance.items():
        assert abs(deviation(outcomes[name].sum().item(), len(outcomes[name]), chance)) < 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"length": 63}, "task.length=63 is not an even number of at least 4 tokens; .* task.length=62"),
        ({"length": 2}, "task.length=4"),
        ({"p_ignore": 1.5}, "task.p_ignore=1.5 is not a probability"),
        ({"p_ignore": []}, "task.p_ignore"),
    ],
)
def test_mistakes(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        FlipFlop(**options)


def test_a_set_of_odd_length_names_the_closest() -> None:
    with pytest.raises(ConfigurationError, match=r"sparse_length_65 is not .* evaluation.sets=sparse_length_64"):
        FlipFlop().token_length("sparse_length_65")
