"""What holds for every task."""

import inspect

import numpy as np
import pytest
import torch

from lcbench.dataset.base import TRAIN, Batch
from lcbench.errors import ConfigurationError
from lcbench.task.base import Task, join_length, split_length
from lcbench.task.counting import Counting
from lcbench.task.flip_flop import FlipFlop
from lcbench.task.mqar import MQAR
from lcbench.task.passkey import Passkey
from lcbench.task.passkey_text import PasskeyText
from lcbench.task.selective_copy import SelectiveCopy
from lcbench.task.selective_copy_mamba import SelectiveCopyMamba

TASKS = [
    FlipFlop(),
    FlipFlop(p_ignore=[0.1, 0.9, 0.98], loss="noisy"),
    SelectiveCopy(),
    SelectiveCopy(length=33),
    SelectiveCopyMamba(),
    SelectiveCopyMamba(placement="first"),
    Counting(),
    Counting(variables=3),
    Counting(variables=5, length=200),
    MQAR(),
    MQAR(filler="random", pairs=16),
    Passkey(),
    Passkey(keys=3, values=2, mentions=1, haystack="noise", loss="everything"),
    PasskeyText(),
    PasskeyText(protocol="infini", min_length=300),
    PasskeyText(protocol="niah_multiquery", length=1100),
]
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)


def sets_of(task: Task) -> list[str]:
    return [TRAIN, *task.evaluation_sets, task.at("in_distribution", 2 * task.length + 2 * (task.length % 2))]


@every_task
def test_the_solver_is_right_wherever_scored(task: Task) -> None:
    for name in sets_of(task):
        batch = task.sample(np.random.default_rng(0), 300, name)
        solved = task.solve(batch.tokens)
        assert torch.equal(solved[batch.scored], batch.targets[batch.scored])
        for wrong in task.outcomes(batch, solved).values():
            assert not wrong.any()


@every_task
def test_wrong_answers_are_counted(task: Task) -> None:
    batch = task.sample(np.random.default_rng(0), 50, TRAIN)
    outcomes = task.outcomes(batch, (batch.targets + 1) % len(task.vocabulary))
    assert outcomes["error"].all()
    if "token_error" in outcomes:
        assert outcomes["token_error"].all()
        assert len(outcomes["error"]) <= len(outcomes["token_error"]) <= int(batch.scored.sum())
    else:
        assert len(outcomes["error"]) == int(batch.scored.sum())
    whole = "sequence_error" if "sequence_error" in outcomes else "error"  # where an example has one answer
    assert outcomes[whole].all()
    assert len(outcomes[whole]) == 50
    assert task.headline in outcomes
    assert set(task.chance) <= set(outcomes)


@every_task
def test_shapes_types_and_lengths(task: Task) -> None:
    for name in sets_of(task):
        batch = task.sample(np.random.default_rng(1), 64, name)
        shape = batch.tokens.shape
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        assert batch.scored.dtype == batch.supervised.dtype == torch.bool
        assert batch.targets.shape == batch.scored.shape == batch.supervised.shape == shape
        assert shape[1] <= task.token_length(name)
        assert batch.scored.any(1).all()
        assert not (batch.scored & ~batch.supervised).any()
        assert int(batch.tokens.min()) >= 0
        assert int(batch.tokens.max()) < len(task.vocabulary)
        assert int(batch.targets.min()) >= 0
        assert int(batch.targets.max()) < len(task.vocabulary)
        if batch.padding is not None:
            assert not (batch.scored & batch.padding).any()
            assert (batch.padding[:, 1:] | ~batch.padding[:, :-1]).all(), "padding lies on the right"
            assert not batch.padding.all(0).any()
    assert task.token_length(TRAIN) <= task.length


@every_task
def test_the_same_generator_gives_the_same_examples(task: Task) -> None:
    first, again = (task.sample(np.random.default_rng(5), 20, "in_distribution") for _ in range(2))
    other = task.sample(np.random.default_rng(6), 20, "in_distribution")
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.targets, again.targets)
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)


@every_task
def test_an_unknown_set_names_the_closest(task: Task) -> None:
    with pytest.raises(ConfigurationError, match=r"no set 'in_distribtion'; the closest is in_distribution \(known: "):
        task.token_length("in_distribtion")
    with pytest.raises(ConfigurationError, match="no set 'nonsense_length_4x'"):
        task.token_length("nonsense_length_4x")
    with pytest.raises(ConfigurationError, match="no set 'nonsense"):
        task.at("nonsense", 256)
    with pytest.raises(ConfigurationError, match="no set 'nonsense'"):
        task.sample(np.random.default_rng(0), 1, "nonsense")


@every_task
def test_at_names_a_set_of_that_length(task: Task) -> None:
    for length in (4 * task.length, 6 * task.length):
        name = task.at("in_distribution", length)
        assert name == f"length_{length}"
        assert task.at("length_2x" if task.length % 2 == 0 else "in_distribution", length) == name
        assert 0.9 * length <= task.token_length(name) <= length


@every_task
def test_options_are_keyword_only_with_types_and_defaults(task: Task) -> None:
    parameters = list(inspect.signature(type(task)).parameters.values())
    assert "length" in {parameter.name for parameter in parameters}
    for parameter in parameters:
        if parameter.name == "tokenizer":  # handed over by whoever has one
            continue
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is not inspect.Parameter.empty
        assert parameter.annotation is not inspect.Parameter.empty


def test_names_of_lengths() -> None:
    assert split_length("sparse_length_4x", 64) == ("sparse", 256)
    assert split_length("sparse_length_1k", 64) == ("sparse", 1000)
    assert split_length("length_2x", 64) == ("in_distribution", 128)
    assert split_length("in_distribution_length_2x", 64) == ("in_distribution", 128)
    assert split_length("dense", 64) == ("dense", None)
    assert split_length("length_4", 64) == ("in_distribution", 4)
    assert join_length("sparse", 256) == "sparse_length_256"
    assert join_length("in_distribution", 256) == "length_256"


def test_an_example_as_text() -> None:
    task = FlipFlop(length=6)
    rows = torch.tensor([[0, 4, 2, 3, 1, 4]])
    scored = torch.tensor([[False, False, False, False, True]])
    batch = Batch(rows[:, :-1], rows[:, 1:], scored, scored)
    assert task.describe(batch, 0) == "w 1 i 0 r->1"
    counting = Counting()
    batch = counting.sample(np.random.default_rng(0), 20, TRAIN)
    for row in range(20):
        text = counting.describe(batch, row)
        assert "<pad>" not in text
        assert text.count("->") == 1
