"""Scoring a model on evaluation sets: counts first, rates and intervals from them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any

import torch

from lcbench.attention.base import State
from lcbench.dataset.base import Batch
from lcbench.engine.experiment import Experiment
from lcbench.engine.generation import CHUNK, Reader, prompts_of, speak, without_landmarks
from lcbench.engine.progress import Progress
from lcbench.engine.streaming import stream_score
from lcbench.engine.tally import Judge, autocast, facts_of, judged
from lcbench.model.base import Model
from lcbench.objective.base import Objective
from lcbench.task.base import Task
from lcbench.task.tally import Tally


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
    chunk: int | None = None,
    segment: int | None = None,
    tick: Callable[[int], None] = lambda done: None,
    tally: Tally | None = None,
) -> dict[str, float]:
    """Score ``model`` on the first ``examples`` of an evaluation set.

    Args:
        objective: what ``model`` was trained on: makes predictions of its outputs.
        chunk: tokens fed at a time where the set is one that is streamed.
        segment: tokens read at once, each segment by itself, with the objective's memory carried; None: all of them.
            Not of sets that a model answers by itself.
        tick: called with the number of examples done after every batch.
        tally: what counts them; None: a new one.

    Returns:
        Per metric ``name``, ``name_low``, ``name_high`` (95 % interval) and ``name_n`` (outcomes counted).
    """
    if task.streams(evaluation_set):
        return stream_score(
            model,
            task,
            evaluation_set,
            examples=examples,
            batch_size=batch_size,
            chunk=chunk or CHUNK,
            seed=seed,
            device=device,
            objective=objective,
            precision=precision,
            tally=tally,
        ).scores
    rows, tally = task.rows(evaluation_set, examples, seed), tally or task.tally(evaluation_set)
    spoken = task.spoken(evaluation_set)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            for start, stop in rows.batches(batch_size):
                batch = rows.take(start, stop).to(device)
                if spoken is None:
                    tally.add(batch, read(model, objective, batch, task.judge, segment))
                else:
                    batch = without_landmarks(batch, task.insertion)
                    reader = Reader(model, objective, task.insertion, device)
                    tally.add(batch, speak(reader, reader.read(*prompts_of(batch)), spoken))
                tick(len(batch))
    finally:
        model.train(was_training)
    return tally.record()


def read(model: Model, objective: Objective, batch: Batch, judge: Judge, segment: int | None = None) -> torch.Tensor:
    """What ``judge`` makes of the scores at every position, teacher forcing: ``[batch, time]``; see ``score``."""
    memory: State | None = None
    parts = []
    time = batch.tokens.shape[1]
    size = segment or time
    for start in range(0, time, size):
        piece = batch.times(start, start + size) if size < time else batch
        values, memory = judged(model(piece.tokens, facts_of(piece)), objective, piece, judge, memory)
        parts.append(values)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def scored_sets(
    model: Model,
    experiment: Experiment,
    progress: Progress,
    check: Callable[[], None],
    done: Container[str] = (),
    keep: Callable[[str, list[dict[str, Any]]], None] = lambda name, rows: None,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Score ``model`` on every set that the experiment's evaluation asks for, one after another.

    Args:
        progress: told of every batch.
        check: called after every batch; may raise to stop.
        done: sets to leave out.
        keep: called with the name and the details of every set (see ``Tally.details``), before it is yielded.

    Yields:
        The set's name, and what a record holds of it: ``scores/<set>/<metric>``, ``counts/<set>/<what>`` where a set
        was not drawn but cut out of something and, where examples were streamed, ``streaming/<set>/<cost>``.
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
            "tally": (tally := experiment.task.tally(name)),
        }
        costs: dict[str, float] = {}
        rows = experiment.task.rows(name, evaluation.examples, evaluation.seed)
        if evaluation.streaming or experiment.task.streams(name):
            progress.begin(f"streaming {name}", rows.positions)
            streamed = stream_score(model, experiment.task, name, chunk=evaluation.chunk, **options)
            scores, costs = streamed.scores, streamed.costs
        else:
            progress.begin(f"scoring {name}", len(rows))
            scores = score(model, experiment.task, name, segment=evaluation.segment, **options)
        keep(name, tally.details())
        yield (
            name,
            {
                **{f"scores/{name}/{metric}": value for metric, value in scores.items()},
                **{f"counts/{name}/{what}": value for what, value in rows.counts.items()},
                **{f"streaming/{name}/{cost}": value for cost, value in costs.items()},
            },
        )
