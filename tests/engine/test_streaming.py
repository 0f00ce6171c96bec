"""Streamed scores are those of reading every example whole, whatever the pieces."""

from __future__ import annotations

import json

import pytest
import torch

import lcbench
from lcbench.composition import build, compose
from lcbench.engine.evaluation import score
from lcbench.engine.streaming import stream_score
from tests.conftest import TINY

NETWORKS = {
    "full": ("position=rope",),
    "infini": ("attention=infini", "attention.segment=4", "position=rope"),
    "window": ("attention=sliding_window", "attention.window=5", "position=alibi"),
    "recurrent_memory": ("model=recurrent_memory", "model.segment=6", "model.slots=2", "position=rope"),
    "lstm": ("model=lstm",),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("task", "evaluation_set"), [("flip_flop", "sparse_length_4x"), ("counting", "in_distribution")]
)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_streamed_scores_are_those_of_whole_examples(name: str, task: str, evaluation_set: str, chunk: int) -> None:
    base = [word for word in TINY if not word.startswith("task") and not (name == "lstm" and "n_heads" in word)]
    words = [*base, f"task={task}", *NETWORKS[name], *(["task.length=16"] if task == "flip_flop" else [])]
    experiment, model = build(compose(words)), lcbench.build_model(words).double()
    options = {"examples": 11, "batch_size": 4, "seed": 0, "device": "cpu", "objective": experiment.objective}
    whole = score(model, experiment.task, evaluation_set, **options)
    done: list[int] = []
    streamed = stream_score(model, experiment.task, evaluation_set, chunk=chunk, tick=done.append, **options)
    assert streamed.scores == whole
    assert streamed.costs["state_bytes"] > 0
    assert sum(done) <= 11 * (experiment.task.token_length(evaluation_set) - 1)


def test_state_bytes_are_those_of_the_formula() -> None:
    words = [*TINY, *NETWORKS["infini"]]
    experiment, model = build(compose(words)), lcbench.build_model(words)
    streamed = stream_score(
        model,
        experiment.task,
        "sparse_length_4x",
        examples=3,
        batch_size=3,
        chunk=10,
        seed=0,
        device="cpu",
        objective=experiment.objective,
    )
    assert streamed.costs["state_bytes"] == model.state_bytes(1, 4 * 16 - 1, torch.float32)


def test_a_run_is_evaluated_by_streaming_with_the_same_scores(command, tmp_path) -> None:
    words = [*TINY, *NETWORKS["infini"], "evaluation.sets=[sparse_length_4x]"]
    assert command(*words).returncode == 0
    (run,) = (path.parent for path in (tmp_path / "outputs").rglob("result.json"))
    own = json.loads((run / "result.json").read_text())
    done = command("evaluate", str(run), "evaluation.streaming=true", "evaluation.chunk=8")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (run / "evaluations").glob("*.json")
    record = json.loads(path.read_text())
    assert record["scores/sparse_length_4x/error"] == own["scores/sparse_length_4x/error"]
    assert record["streaming/sparse_length_4x/tokens_per_second"] > 0
