"""scores.csv: one row per evaluation set and metric, beside the metrics.csv that every run writes."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lcbench.logger.base import RunFacts, RunLogger
from lcbench.results.record import scores_of, write_text


class CSV(RunLogger):
    """Writes scores.csv into the run's folder at the end; the curves are in metrics.csv."""

    def start(self, facts: RunFacts) -> str | None:
        self.path: Path = facts.folder / "scores.csv"
        return None

    def log(self, metrics: dict[str, float], step: int) -> None:
        return None

    def finish(self, result: dict[str, Any], exit_code: int) -> str | None:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["evaluation_set", "metric", "value", "low", "high", "n"])
        writer.writerows([s.evaluation_set, s.metric, s.value, s.low, s.high, s.n] for s in scores_of(result))
        write_text(self.path, text.getvalue())
        return None
