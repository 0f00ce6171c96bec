"""A table beside a record: a row for everything that has a score of its own, such as a document of a text."""

from __future__ import annotations

import csv
import io
from collections.abc import Container
from pathlib import Path
from typing import Any

from lcbench.results.record import write_text

#: the column that says which set a row is of
SET = "evaluation_set"


class Details:
    """A CSV file, written anew, atomically, after every set: a reader never sees half of one.

    Args:
        path: of the file; without rows there is none.
        done: sets whose rows are kept of a file that is there.
    """

    def __init__(self, path: Path, done: Container[str] = ()) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if row.get(SET) in done]

    def add(self, evaluation_set: str, rows: list[dict[str, Any]]) -> None:
        """Write down what a set has."""
        self.rows += [{SET: evaluation_set, **row} for row in rows]
        if self.rows:
            text = io.StringIO()
            # what one set has and another has not stays empty
            writer = csv.DictWriter(text, dict.fromkeys(key for row in self.rows for key in row), restval="")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.path, text.getvalue())
