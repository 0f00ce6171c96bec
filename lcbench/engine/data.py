"""What a run's examples are drawn from: the same from its first step to its last score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lcbench.engine.experiment import Experiment
from lcbench.engine.progress import Progress
from lcbench.errors import ConfigurationError

#: what a network that was trained must find unchanged
KEPT = {"content": "files of the corpus have", "tokenizer": "files of the tokenizer have"}


def data_of(experiment: Experiment, progress: Progress, check: Callable[[], None]) -> dict[str, str | int]:
    """Make ready what the task needs, and what a record says of it, under ``data/``; ``check`` may raise to stop."""
    return {f"data/{key}": value for key, value in experiment.task.prepare(_Watched(progress, check)).items()}


@dataclass(frozen=True)
class _Watched:
    progress: Progress
    check: Callable[[], None]

    def begin(self, description: str, total: int) -> None:
        self.progress.begin(description, total)

    def tick(self, more: int) -> None:
        self.check()
        self.progress.tick(more)


def refuse_other_data(before: Mapping[str, Any], now: Mapping[str, Any], remedy: str) -> None:
    """Refuse to go on with a network that was trained on something else.

    Raises:
        ConfigurationError: if the record of its training names other data.
    """
    for name, what in KEPT.items():
        key = f"data/{name}"
        if key in before and before[key] != now.get(key):
            raise ConfigurationError(
                f"the network was trained with {key}={before[key]}, and now there is {now.get(key)}: the {what} "
                f"changed since; bring them back, or {remedy}."
            )
