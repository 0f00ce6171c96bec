import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.dataset.base import TRAIN
from lcbench.errors import ConfigurationError
from lcbench.task.selective_copy_mamba import SelectiveCopyMamba
from tests.oracles import selective_copy as oracle
from tests.oracles.statistics import chi_square


@given(
    content=st.integers(1, 12),
    blanks=st.integers(0, 60),
    alphabet=st.integers(3, 20),
    placement=st.sampled_from(["random", "first"]),
    seed=st.integers(0, 1000),
    name=st.sampled_from([TRAIN, "in_distribution", "dense", "sparse", "length_3x"]),
)
@settings(max_examples=80, deadline=None)
def test_every_row_is_as_defined(
    content: int, blanks: int, alphabet: int, placement: str, seed: int, name: str
) -> None:
    length = blanks + 2 * content
    task = SelectiveCopyMamba(length=length, content=content, alphabet=alphabet, placement=placement)
    batch = task.sample(np.random.default_rng(seed), 6, name)
    tripled = 3 * length - 2 * content
    expected = {"dense": blanks // 2, "sparse": 2 * blanks, "length_3x": tripled}.get(name, blanks)
    assert batch.tokens.shape[1] == task.token_length(name) == expected + 2 * content
    for row in range(6):
        string = [task.vocabulary[token] for token in batch.tokens[row].tolist()]
        answers = [task.vocabulary[target] for target in batch.targets[row, batch.scored[row]].tolist()]
        oracle.check_with_markers(string, answers, expected, content)
        assert not {".", "#"} & set(answers)
        if placement == "first":
            assert string[:content] == answers
    assert torch.equal(batch.scored, batch.tokens == alphabet - 1)
    assert torch.equal(task.solve(batch.tokens)[batch.scored], batch.targets[batch.scored])


@pytest.mark.parametrize(
    ("string", "answers", "reason"),
    [
        ("1..2#", "12", "marker"),
        ("1..2##", "21", "not the data"),
        ("1...2##", "12", "marker"),
        ("1.22##", "12", "wrong number"),
    ],
)
def test_the_checker_rejects_broken_rows(string: str, answers: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        oracle.check_with_markers(list(string), list(answers), 2, 2)
    oracle.check_with_markers(list("1..2##"), list("12"), 2, 2)


def test_places_and_data_are_uniform() -> None:
    task = SelectiveCopyMamba()
    batch = task.sample(np.random.default_rng(0), 20_000, "in_distribution")
    frequencies = (batch.tokens[:, :56] > 0).sum(0).numpy()
    share = 8 / 56
    statistic = ((frequencies - 20_000 * share) ** 2).sum() / (20_000 * share * (1 - share))
    assert abs(statistic - 55) < 4 * 110**0.5
    data = np.bincount(batch.targets[batch.scored].numpy(), minlength=10)
    assert data[0] == data[9] == 0
    assert abs(chi_square(data[1:9].tolist(), [1.0] * 8)) < 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"length": 15}, "task.length=15 cannot hold task.content=8 and as many markers; .* task.length=16"),
        ({"content": 0}, "task.content=0"),
        ({"alphabet": 2}, "task.alphabet=2 leaves no data token beside blank and marker; .* task.alphabet=3"),
    ],
)
def test_mistakes(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        SelectiveCopyMamba(**options)
