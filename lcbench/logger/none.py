"""No logger: lcbench's own files are all there is."""

from __future__ import annotations

from typing import Any

from lcbench.logger.base import RunFacts, RunLogger


class Nothing(RunLogger):
    """Logs nowhere."""

    def start(self, facts: RunFacts) -> str | None:
        return None

    def log(self, metrics: dict[str, float], step: int) -> None:
        return None

    def finish(self, result: dict[str, Any], exit_code: int) -> str | None:
        return None
