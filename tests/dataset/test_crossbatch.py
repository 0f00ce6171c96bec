"""Cross-batch arrangement: who reads whom, and that the model does."""

from __future__ import annotations

import pytest
import torch

import lcbench
from lcbench.composition import build, compose
from lcbench.dataset.crossbatch import CrossBatch
from lcbench.dataset.synthetic import Synthetic
from lcbench.engine.module import TrainingModule
from lcbench.engine.tally import facts_of
from lcbench.errors import ConfigurationError
from lcbench.task.counting import Counting
from lcbench.task.flip_flop import FlipFlop
from tests.conftest import TINY

WORDS = [*TINY, "attention=focused", "attention.segment=4", "position=rope", "dataset=crossbatch"]


def test_rows_are_the_tasks_examples_and_shares_of_them_get_each_pair() -> None:
    task = FlipFlop(length=16)
    arranged = CrossBatch(task, 3, 8, mixture=[[0, 0], [1, 2], [3, 0], [1, 4]])
    batch = arranged.batch(5)
    assert torch.equal(batch.tokens, Synthetic(task, 3, 8).batch(5).tokens)
    assert batch.crossbatch == ((0, 0), (0, 0), (1, 2), (1, 2), (3, 0), (3, 0), (1, 4), (1, 4))


def test_negatives_may_come_later() -> None:
    arranged = CrossBatch(FlipFlop(length=16), 0, 5, mixture=[[1, 3]], negatives_from=7)
    assert {arranged.batch(i).crossbatch[0] for i in range(7)} == {(1, 0)}
    assert arranged.batch(7).crossbatch == ((1, 3),) * 5


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"mixture": []}, 4, "must be pairs"),
        ({"mixture": [[1]]}, 4, "must be pairs"),
        ({"mixture": [[1, -1]]}, 4, "none below 0"),
        ({"mixture": [[1, 3]]}, 4, "the least is trainer.batch_size=5"),
    ],
)
def test_what_cannot_be_arranged_is_refused(options: dict, batch: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CrossBatch(FlipFlop(length=16), 0, batch, **options)


def test_documents_of_different_lengths_are_refused() -> None:
    ragged = next(
        index for index in range(20) if Synthetic(Counting(length=24), 0, 8).batch(index).padding is not None
    )
    with pytest.raises(ConfigurationError, match="differ in length"):
        CrossBatch(Counting(length=24), 0, 8).batch(ragged)


def test_the_layer_reads_other_rows_in_training_and_none_in_evaluation() -> None:
    experiment = build(compose(WORDS))
    model = lcbench.build_model(WORDS)
    batch = experiment.dataset.batch(0)
    changed = batch.tokens.clone()
    changed[1, :4] = (changed[1, :4] + 1) % 5
    for facts, reads in ((facts_of(batch), True), (None, False)):
        before, after = (model(tokens, facts).logits[0] for tokens in (batch.tokens, changed))
        assert torch.equal(before, after) != reads


def test_it_trains() -> None:
    experiment = build(compose(WORDS))
    module = TrainingModule(experiment, experiment.make_model())
    module._stop_unless_finite = lambda loss: None  # needs a trainer
    module.training_step(experiment.dataset.batch(0), 0).backward()
    assert any(name.endswith("positive_share/head_0") for name in module.measured())
