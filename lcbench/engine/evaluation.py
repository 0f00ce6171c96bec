"""Scoring a model on evaluation sets: counts first, rates and intervals from them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any

import torch

from lcbench.attention.base import State
from lcbench.dataset.base import Batch
from lcbench.dataset.synthetic import evaluation_batches
from lcbench.engine.experiment import Experiment
from lcbench.engine.progress import Progress
from lcbench.engine.streaming import stream_score
from lcbench.engine.tally import Tally, autocast, facts_of
from lcbench.model.base import Model
from lcbench.objective.base import Objective
from lcbench.task.base import Task


def score(
    model: Model,
    task: Task,
    evaluation_set: str,
    *,
    examples: int,
    batch_size: int,
    seed: int,
    device: str,
    objective: Objective,
    precision: str = "32",
    segment: int | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """Score ``model`` on the first ``examples`` of an evaluation set.

    Args:
        objective: what ``model`` was trained on: makes predictions of its outputs.
        segment: tokens read at once, each segment by itself, with the objective's memory carried; None: all of them.
        tick: called with the number of examples done after every batch.

    Returns:
        Per metric ``name``, ``name_low``, ``name_high`` (95 % interval) and ``name_n`` (outcomes counted).
    """
    tallies: dict[str, Tally] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            for batch in _on(device, evaluation_batches(task, evaluation_set, examples, batch_size, seed)):
                predictions = predicted(model, objective, batch, segment)
                for name, outcomes in task.outcomes(batch, predictions).items():
                    tallies.setdefault(name, Tally()).add(outcomes)
                tick(len(batch))
    finally:
        model.train(was_training)
    return {k: v for name, tally in tallies.items() for k, v in tally.record(name).items()}


def predicted(model: Model, objective: Objective, batch: Batch, segment: int | None = None) -> torch.Tensor:
    """The likeliest token at every position, teacher forcing: int64 ``[batch, time]``; for arguments see ``score``."""
    tokens, facts = batch.tokens, facts_of(batch)
    memory: State | None = None
    parts = []
    size = segment or tokens.shape[1]
    for start in range(0, tokens.shape[1], size):
        piece = tokens[:, start : start + size]
        known = facts.map(lambda tensor, start=start: tensor[:, start : start + size])  # type: ignore[misc]
        scores, memory = objective.predict(model(piece, known), piece, known, memory)
        parts.append(scores.argmax(-1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def scored_sets(
    model: Model, experiment: Experiment, progress: Progress, check: Callable[[], None], done: Container[str] = ()
) -> Iterator[tuple[str, dict[str, float]]]:
    """Score ``model`` on every set that the experiment's evaluation asks for, one after another.

    Args:
        progress: told of every batch.
        check: called after every batch; may raise to stop.
        done: sets to leave out.

    Yields:
        The set's name, and what a record holds of it: ``scores/<set>/<metric>`` and, where examples were streamed,
        ``streaming/<set>/<cost>``.
    """
    evaluation, settings = experiment.evaluation, experiment.trainer
    model.to(settings.device)

    def tick(more: int) -> None:
        check()
        progress.tick(more)

    for name in experiment.evaluation_sets():
        if name in done:
            continue
        options: dict[str, Any] = {
            "examples": evaluation.examples,
            "batch_size": evaluation.batch_size,
            "seed": evaluation.seed,
            "device": settings.device,
            "precision": settings.precision,
            "objective": experiment.objective,
            "tick": tick,
        }
        costs: dict[str, float] = {}
        if evaluation.streaming:
            tokens = experiment.task.token_length(name) - 1
            progress.begin(f"streaming {name}", evaluation.examples * tokens)
            streamed = stream_score(model, experiment.task, name, chunk=evaluation.chunk, **options)
            scores, costs = streamed.scores, streamed.costs
        else:
            progress.begin(f"scoring {name}", evaluation.examples)
            scores = score(model, experiment.task, name, segment=evaluation.segment, **options)
        yield (
            name,
            {
                **{f"scores/{name}/{metric}": value for metric, value in scores.items()},
                **{f"streaming/{name}/{cost}": value for cost, value in costs.items()},
            },
        )


def _on(device: str, batches: Iterator[Batch]) -> Iterator[Batch]:
    return (batch.to(device) for batch in batches)
