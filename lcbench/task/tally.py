"""Counting outcomes: what a task makes of a model's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lcbench.dataset.base import Batch
from lcbench.results.statistics import normal, wilson


class Tally(Protocol):
    """Running sums over the batches of an evaluation set."""

    def add(self, batch: Batch, values: Tensor) -> None:
        """Add a batch and what ``Task.judge`` kept of its scores, ``[batch, time]``."""

    def record(self) -> dict[str, float]:
        """Per metric ``name``, ``name_low``, ``name_high`` (95 % interval) and ``name_n`` (what was counted)."""

    def details(self) -> list[dict[str, Any]]:
        """Rows of a table beside the record: a row for each thing that has a score of its own, with the same keys."""


@dataclass
class Mean:
    """Running sums of one metric's outcomes, taken as independent."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    counts: bool = True

    def add(self, outcomes: Tensor) -> None:
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


class Outcomes:
    """The mean of each metric's outcomes.

    Args:
        outcomes: per metric, one outcome for each thing it counts, from a batch and predictions ``[batch, time]``.
    """

    def __init__(self, outcomes: Callable[[Batch, Tensor], dict[str, Tensor]]) -> None:
        self.outcomes = outcomes
        self.means: dict[str, Mean] = {}

    def add(self, batch: Batch, values: Tensor) -> None:
        """See ``Tally.add``."""
        for name, outcomes in self.outcomes(batch, values).items():
            self.means.setdefault(name, Mean()).add(outcomes)

    def record(self) -> dict[str, float]:
        """See ``Tally.record``."""
        return {key: value for name, mean in self.means.items() for key, value in mean.record(name).items()}

    def details(self) -> list[dict[str, Any]]:
        """See ``Tally.details``: none, outcomes are too many."""
        return []
