"""Scoring a model on evaluation sets: counts first, rates and intervals from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from lcbench.attention.base import Facts, State
from lcbench.dataset.base import Batch
from lcbench.dataset.synthetic import evaluation_batches
from lcbench.model.base import Model
from lcbench.objective.base import Objective
from lcbench.results.statistics import normal, wilson
from lcbench.task.base import Task


@dataclass
class Tally:
    """Running sums of one metric's outcomes."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    counts: bool = True

    def add(self, outcomes: torch.Tensor) -> None:
        """Add outcomes ``[any]``, bool or float."""
        self.counts = outcomes.dtype == torch.bool
        values = outcomes.double()
        self.n += values.numel()
        self.total += float(values.sum())
        self.squares += float((values * values).sum())

    def record(self, key: str) -> dict[str, float]:
        """The rate, its 95 % interval and how many were counted, under ``key``, ``key_low``, ..."""
        if self.n == 0:
            return {}
        low, high = wilson(self.total, self.n) if self.counts else normal(self.total, self.squares, self.n)
        return {key: self.total / self.n, f"{key}_low": low, f"{key}_high": high, f"{key}_n": self.n}


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """The forward pass's number format."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()


def facts_of(batch: Batch) -> Facts:
    """What a model must know of a batch beyond its tokens."""
    return Facts(padding=batch.padding)


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


def _on(device: str, batches: Iterator[Batch]) -> Iterator[Batch]:
    return (batch.to(device) for batch in batches)
