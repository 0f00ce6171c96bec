"""The interface of a logger: somewhere beside lcbench's own files where a run can be watched.

lcbench's own metrics.csv and result.json are the source of truth; a logger that fails loses nothing they hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcbench.results.comparison import Comparison


@dataclass(frozen=True)
class RunFacts:
    """What a logger is told at the start.

    Args:
        folder: the run's folder.
        config: the whole resolved config, plain.
        experiment: what the run belongs to.
        name: the folder's name.
        tags: words to find it by.
        job: train or evaluate.
        evaluated: the folder of the run that an evaluation scores; None for a run.
    """

    folder: Path
    config: dict[str, Any]
    experiment: str
    name: str
    tags: list[str]
    job: str = "train"
    evaluated: Path | None = None


@dataclass(frozen=True)
class SweepFacts:
    """What a logger is told of a sweep whose runs it has watched.

    Args:
        folder: the sweep's own folder.
        group: what its runs are grouped by.
        tags: words to find it by.
    """

    folder: Path
    group: str
    tags: list[str]


class RunLogger(ABC):
    """Somewhere a run can be watched. A subclass's constructor takes keyword-only arguments."""

    @abstractmethod
    def start(self, facts: RunFacts) -> str | None:
        """Open; returns one line for the user, or None."""

    @abstractmethod
    def log(self, metrics: dict[str, float], step: int) -> None:
        """Metrics after ``step`` updates."""

    @abstractmethod
    def finish(self, result: dict[str, Any], exit_code: int) -> str | None:
        """Close, whatever happened, with the run's record; returns one line for the user, or None."""

    def finished_before(self, facts: RunFacts, result: dict[str, Any]) -> str | None:
        """Told of a run that is asked for again; returns one line for the user, or None."""
        return None

    def log_figures(self, facts: RunFacts, figures: Mapping[str, Path]) -> str | None:
        """Take SVG files, by name, that were made of a finished run; ``facts`` are those of a page of their own.
        Returns one line for the user, or None. Here nothing is kept."""
        return None

    def finish_sweep(self, facts: SweepFacts, comparison: Comparison) -> str | None:
        """Take the comparison of a sweep's runs; returns one line for the user, or None."""
        return None
