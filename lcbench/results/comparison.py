"""What a comparison consists of, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from lcbench.results.runs import Run, Unreadable

#: what a configuration costs, beside its scores
COSTS = ("parameters", "tokens_per_second", "peak_memory_bytes", "wall_seconds", "train_flops")

#: what one number of a row comes from: the values of the keys that a row mixes, and the seed
Unit = tuple[Any, ...]

BEST, AMONG_THE_BEST = "*", "~"


@dataclass(frozen=True)
class Summary:
    """One metric of one configuration.

    Args:
        mean, median: over seeds.
        low, high: 95 % interval of the mean.
        n: seeds.
        solved: share of seeds that solved the task; None for a metric that is no share.
        values: per seed.
        own: per seed, the run's own 95 % interval, from how much was scored.
        mark: ``*`` for the best whose interval overlaps no other's; ``~`` for the best and all whose intervals overlap
            the best's; empty for others.
    """

    mean: float
    median: float
    low: float
    high: float
    n: int
    solved: float | None
    values: dict[Unit, float]
    own: dict[Unit, tuple[float, float]]
    mark: str = ""

    def own_interval(self, units: Iterable[Unit]) -> tuple[float, float]:
        """The mean of the lower and of the upper ends of these seeds' own intervals."""
        ends = [self.own[unit] for unit in units]
        return fmean(low for low, _ in ends), fmean(high for _, high in ends)


@dataclass(frozen=True)
class Difference:
    """A configuration's score minus the baseline's, over the seeds that both have.

    Args:
        mean, low, high: of the difference, seed by seed, and its 95 % interval (paired t; with one common seed, or
            where all differences are the same, from the runs' own intervals).
        n: common seeds.
        verdict: better or worse where two seeds or more have an interval that excludes zero, else empty.
    """

    mean: float
    low: float
    high: float
    n: int
    verdict: str


@dataclass(frozen=True)
class Row:
    """One configuration.

    Args:
        keys: the values of the table's columns; a column that the configuration does not have is missing.
        n: seeds that are completed.
        scores: by ``evaluation set/metric``.
        cost: means over the completed runs, by the name in COSTS; None where unknown.
        incomplete: runs that are not completed, by status.
        folders: of all its runs.
        runs: the runs themselves.
        differences: by metric, from the baseline; empty without one.
        baseline: whether it is the one that others are compared with.
    """

    keys: dict[str, Any]
    n: int
    scores: dict[str, Summary]
    cost: dict[str, float | None]
    incomplete: dict[str, int]
    folders: tuple[str, ...]
    runs: tuple[Run, ...] = field(repr=False)
    differences: dict[str, Difference] = field(default_factory=dict)
    baseline: bool = False


@dataclass(frozen=True)
class Table:
    """The configurations of one experiment.

    Args:
        experiment, task: what all rows belong to.
        columns: dotted keys, or groups, that tell the rows apart.
        metrics: shown, as ``evaluation set/metric``.
        rows: one per configuration.
        mixed: keys that differ within rows, because ``by`` leaves them out; a row's n counts them too.
        notes: sentences a reader of the numbers must know.
    """

    experiment: str
    task: str
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    mixed: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Tables of everything that was read.

    Args:
        tables: one per experiment and task.
        unreadable: run folders that were skipped.
        solved: the error up to which a seed counts as having solved the task.
        against: the baseline's keys and values; empty without one.
    """

    tables: tuple[Table, ...]
    unreadable: tuple[Unreadable, ...]
    solved: float
    against: dict[str, str]
