"""Landmarks in batches: where they go, that they ask nothing, and that without them the batch is the task's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from lcbench.composition import build, compose
from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.insertion import Insertion
from lcbench.dataset.landmark import Landmarks
from lcbench.dataset.synthetic import Synthetic
from lcbench.errors import ConfigurationError
from lcbench.task.base import Task
from lcbench.task.counting import Counting
from lcbench.task.flip_flop import FlipFlop
from lcbench.task.landmarked import Landmarked
from lcbench.task.mqar import MQAR
from lcbench.task.passkey_text import PasskeyText

TASKS = [FlipFlop(length=18), Counting(length=24), MQAR(length=16, pairs=2)]


def fields(batch: Batch) -> dict[str, Tensor]:
    found = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)} | batch.facts
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.parametrize("block", [1, 4, 5, 100])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_taking_them_out_gives_the_batch_back(task: Task, block: int, predicted: bool) -> None:
    plain, ours = Synthetic(task, 1, 6), Landmarks(task, 1, 6, block=block, predicted=predicted)
    for index in range(3):
        expected, got = fields(plain.batch(index)), fields(ours.insertion.remove(ours.batch(index)))
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            looked_at = expected["scored"] | expected["supervised"] if name == "targets" else torch.ones_like(value)
            assert torch.equal(torch.where(looked_at.bool(), got[name], value), value), name


def drawn() -> Batch:
    everywhere = torch.ones(2, 5, dtype=torch.bool)
    return Batch(
        tokens=torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]),
        targets=torch.tensor([[11, 12, 13, 14, 15], [16, 17, 0, 0, 0]]),
        scored=everywhere,
        supervised=everywhere,
        padding=torch.tensor([[False] * 5, [False] * 2 + [True] * 3]),
    )


def test_one_stands_after_every_block_and_asks_nothing() -> None:
    batch = Insertion(2, 99, predicted=False).insert(drawn())
    assert batch.tokens.tolist() == [[1, 2, 99, 3, 4, 99, 5], [6, 7, 99, 0, 0, 99, 0]]
    assert batch.targets[0, [0, 1, 3, 4, 6]].tolist() == [11, 12, 13, 14, 15]
    assert batch.landmarks is not None
    # one that follows padding is padding
    assert batch.landmarks.int().tolist() == [[0, 0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0]]
    for asked in (batch.scored, batch.supervised):
        assert asked[0].int().tolist() == [1, 1, 0, 1, 1, 0, 1]


def test_as_part_of_the_text_it_is_predicted_and_predicts() -> None:
    batch = Insertion(2, 99, predicted=True).insert(drawn())
    assert batch.targets[0].tolist() == [11, 99, 12, 13, 99, 14, 15]
    assert bool(batch.supervised.all())
    assert batch.scored[0].int().tolist() == [1, 0, 1, 1, 0, 1, 1]


@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_scores_are_those_of_the_task(task: Task, predicted: bool) -> None:
    ours = Landmarked(task, Insertion(4, len(task.vocabulary), predicted))
    batch = ours.sample(np.random.default_rng(0), 50, task.evaluation_sets[0])
    plain = task.sample(np.random.default_rng(0), 50, task.evaluation_sets[0])
    solved = ours.outcomes(batch, ours.solve(batch.tokens))
    assert not solved["error"].any()
    assert {name: len(o) for name, o in solved.items()} == {
        name: len(o) for name, o in task.outcomes(plain, plain.targets).items()
    }
    assert bool(ours.outcomes(batch, torch.full_like(batch.tokens, -1))["error"].all())
    assert batch.tokens.shape[1] <= ours.token_length(task.evaluation_sets[0])
    assert int(batch.tokens.max()) == len(ours.vocabulary) - 1


def test_workers_and_fixed_sets_deliver_the_same() -> None:
    task = FlipFlop(length=16)
    alone, many = Landmarks(task, 5, 3, block=4, size=40), Landmarks(task, 5, 3, block=4, size=40, workers=2)
    for ours, theirs in zip(alone.loader(2, 9), many.loader(2, 9), strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        assert ours.landmarks is not None
        assert theirs.landmarks is not None
        assert torch.equal(ours.landmarks, theirs.landmarks)


def test_an_id_that_the_task_uses_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no id is free"):
        Insertion(2, 7, predicted=False).insert(drawn())
    with pytest.raises(ConfigurationError, match=r"dataset\.block=1"):
        Landmarks(FlipFlop(length=16), 0, 1, block=0)


def test_a_run_has_one_more_symbol_and_one_block() -> None:
    chosen = ["attention=landmark", "dataset=landmark", "dataset.block=8", "position=rope", "logger=none"]
    experiment = build(compose(chosen))
    plain = build(compose(["position=rope", "logger=none"]))
    assert len(experiment.task.vocabulary) == len(plain.task.vocabulary) + 1
    assert experiment.config["attention"]["block"] == 8
    length = plain.task.token_length(TRAIN)
    assert experiment.task.token_length(TRAIN) == length + length // 8


def test_landmark_attention_without_landmarks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="take dataset=landmark"):
        build(compose(["attention=landmark", "position=rope", "logger=none"]))


@pytest.mark.parametrize("task", [*TASKS, PasskeyText(length=300)], ids=lambda task: type(task).__name__)
def test_a_predicted_landmark_is_a_wrong_answer(task: Task) -> None:
    ours = Landmarked(task, Insertion(7, len(task.vocabulary), predicted=False))
    batch = ours.sample(np.random.default_rng(0), 3, "in_distribution")
    landmark = len(task.vocabulary)
    said = ours.outcomes(batch, torch.where(batch.scored, landmark, batch.targets))
    wrong = said["error"][~said["error"].isnan()] if said["error"].is_floating_point() else said["error"]
    assert wrong.numel()
    assert bool(wrong.all())
