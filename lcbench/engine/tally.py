"""Counting outcomes, and what every way of scoring shares."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from lcbench.attention.base import CrossBatch, Facts
from lcbench.dataset.base import Batch
from lcbench.results.statistics import normal, wilson


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
    crossbatch = None if batch.crossbatch is None else tuple(CrossBatch(*pair) for pair in batch.crossbatch)
    return Facts(padding=batch.padding, landmarks=batch.landmarks, crossbatch=crossbatch)
