import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.dataset.base import TRAIN, Batch
from lcbench.errors import ConfigurationError
from lcbench.task.selective_copy import SelectiveCopy
from tests.oracles import selective_copy as oracle
from tests.oracles.statistics import chi_square


def strings(task: SelectiveCopy, batch: Batch) -> list[list[str]]:
    whole = torch.cat([batch.tokens, batch.targets[:, -1:]], 1)
    return [[task.vocabulary[token] for token in row] for row in whole.tolist()]


@given(
    content=st.integers(1, 20),
    blanks=st.integers(0, 30),
    symbols=st.integers(1, 20),
    seed=st.integers(0, 1000),
    name=st.sampled_from([TRAIN, "in_distribution", "dense", "sparse", "length_3x"]),
)
@settings(max_examples=80, deadline=None)
def test_every_row_holds_its_blanks_and_copies_its_content(
    content: int, blanks: int, symbols: int, seed: int, name: str
) -> None:
    length = blanks + 2 * content + 1
    task = SelectiveCopy(length=length, content=content, symbols=symbols)
    batch = task.sample(np.random.default_rng(seed), 6, name)
    tripled = 3 * length - 2 * content - 1
    expected = {"dense": blanks // 2, "sparse": 2 * blanks, "length_3x": tripled}.get(name, blanks)
    assert task.token_length(name) == expected + 2 * content + 1
    for string in strings(task, batch):
        assert len(string) == task.token_length(name)
        oracle.check(string, expected, content)
    scored = torch.zeros_like(batch.scored)
    scored[:, -content:] = True
    assert torch.equal(batch.scored, scored)
    assert torch.equal(batch.supervised, scored)
    assert torch.equal(task.solve(batch.tokens)[scored], batch.targets[scored])


@pytest.mark.parametrize(
    ("string", "reason"),
    [
        ("1_2_1 12", "separator"),
        ("1_2_|12|", "separator"),
        ("1_2_|21", "not the content"),
        ("1_2_|1", "not the content"),
        ("1__2_|12", "wrong number"),
        ("122_|122", "wrong number"),
    ],
)
def test_the_checker_rejects_broken_strings(string: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        oracle.check(list(string), 2, 2)
    oracle.check(list("1_2_|12"), 2, 2)


def test_places_and_symbols_are_uniform_and_independent() -> None:
    task = SelectiveCopy()
    batch = task.sample(np.random.default_rng(0), 20_000, "in_distribution")
    read = batch.tokens[:, :32].numpy()
    filled = read > 0
    # A row's places exclude each other: the statistic of counts at half the places has half the variance.
    frequencies = filled.sum(0)
    statistic = ((frequencies - 10_000) ** 2).sum() / 5000
    assert abs(statistic - 31) < 4 * 62**0.5
    by_place = [np.bincount(read[:, place][filled[:, place]] - 2, minlength=8) for place in range(32)]
    assert abs(chi_square(np.concatenate(by_place).tolist(), np.repeat(frequencies, 8).tolist())) < 4
    first, second = (batch.targets[:, -16 + place].numpy() - 2 for place in range(2))
    assert abs(chi_square(np.bincount(8 * first + second, minlength=64).tolist(), [1.0] * 64)) < 4


@given(seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_moving_a_blank_changes_nothing_and_swapping_content_swaps_the_answers(seed: int) -> None:
    task = SelectiveCopy()
    rng = np.random.default_rng(seed)
    batch = task.sample(rng, 1, "in_distribution")
    read = batch.tokens[0, :32].tolist()
    answers = task.solve(batch.tokens)[0, -16:].tolist()

    blank = rng.choice([place for place in range(32) if read[place] == 0])
    moved = read[:blank] + read[blank + 1 :]
    moved.insert(rng.integers(0, 32), 0)
    tokens = batch.tokens.clone()
    tokens[0, :32] = torch.tensor(moved)
    assert task.solve(tokens)[0, -16:].tolist() == answers

    places = [place for place in range(32) if read[place] > 0]
    a, b = rng.choice(16, 2, replace=False)
    read[places[a]], read[places[b]] = read[places[b]], read[places[a]]
    answers[a], answers[b] = answers[b], answers[a]
    tokens[0, :32] = torch.tensor(read)
    assert task.solve(tokens)[0, -16:].tolist() == answers


def test_the_answer_is_always_the_same_count_back() -> None:
    """Over separator, content and output the answer is the (M+1)-th token back, whatever the number of blanks."""
    task = SelectiveCopy()
    assert task.positions_needed == task.content + 2
    for name in task.evaluation_sets:
        batch = task.sample(np.random.default_rng(1), 20, name)
        for row in range(20):
            for t in batch.scored[row].nonzero()[:, 0].tolist():
                counted = [token for token in batch.tokens[row, : t + 1].tolist() if token != 0]
                assert counted[-1 - task.content] == batch.targets[row, t]


def test_guessing_scores_chance() -> None:
    task = SelectiveCopy(length=5, content=2, symbols=3)
    batch = task.sample(np.random.default_rng(2), 20_000, "in_distribution")
    guesses = torch.from_numpy(np.random.default_rng(3).integers(2, 5, tuple(batch.tokens.shape)))
    for name, wrong in task.outcomes(batch, guesses).items():
        assert wrong.float().mean().item() == pytest.approx(task.chance[name], abs=0.01)


ONE_BY_ONE = [(index, index + 1) for index in range(16)]
THREES = [*((index, index + 3) for index in range(0, 33, 3)), (33, 35)]


@pytest.mark.parametrize(("content", "groups"), [(16, ONE_BY_ONE), (35, THREES)])
def test_errors_by_output_index(content: int, groups: list[tuple[int, int]]) -> None:
    task = SelectiveCopy(length=2 * content + 20, content=content)
    batch = task.sample(np.random.default_rng(4), 50, "sparse")
    predictions = torch.from_numpy(np.random.default_rng(5).integers(2, 10, tuple(batch.tokens.shape)))
    outcomes = task.outcomes(batch, predictions)
    found = {name: wrong.tolist() for name, wrong in outcomes.items() if "output" in name}
    start = batch.tokens.shape[1] - content
    expected = {}
    for first, end in groups:
        name = f"error/output_{first + 1}" if end == first + 1 else f"error/output_{first + 1}_{end}"
        rows, places = range(50), range(start + first, start + end)
        expected[name] = [bool(predictions[row, t] != batch.targets[row, t]) for row in rows for t in places]
    assert found == expected
    assert set(found) < set(task.chance)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"length": 32}, "task.length=32 cannot hold task.content=16 twice and a separator; .* task.length=33"),
        ({"content": 0}, "task.content=0 leaves nothing to copy; .* task.content=1"),
        ({"symbols": 0}, "task.symbols=0"),
    ],
)
def test_mistakes(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        SelectiveCopy(**options)


def test_blanks_alone_vary() -> None:
    with pytest.raises(ConfigurationError, match="no set 'sparse_length_128'"):
        SelectiveCopy().at("sparse", 128)
    with pytest.raises(
        ConfigurationError, match=r"evaluation.sets=length_20 cannot hold .* evaluation.sets=length_33"
    ):
        SelectiveCopy().token_length("length_20")
