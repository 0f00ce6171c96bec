"""A comparison as CSV and JSON: complete, whatever the terminal shows."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from lcbench.results.comparison import COSTS, Comparison, Row, Table
from lcbench.results.keys import shown

SCORE_CELLS = ("mean", "low", "high", "median", "n", "solved", "mark")


def as_csv(comparison: Comparison) -> str:
    """One line per row of every table. Empty cells are unknown or do not apply."""
    names, lines = as_lines(comparison)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([names, *lines])
    return text.getvalue()


def as_lines(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """The columns' names, and one line per row of every table; None is unknown or does not apply."""
    records = [_flat(table, row) for table in comparison.tables for row in table.rows]
    # names that only some tables have come behind those of the tables before
    names = list(dict.fromkeys(name for record in records for name in record))
    return names, [[record.get(name) for name in names] for record in records]


def _flat(table: Table, row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {"experiment": table.experiment, "task": table.task}
    record |= {column: shown(row.keys[column]) if column in row.keys else "" for column in table.columns}
    record |= {"seeds": row.n, "runs": len(row.runs)}
    record |= {status: row.incomplete.get(status, 0) for status in ("failed", "interrupted", "running")}
    for metric, summary in row.scores.items():
        record |= {f"{metric}_{name}": _known(getattr(summary, name)) for name in SCORE_CELLS}
    for metric, difference in row.differences.items():
        record |= {
            f"{metric}_difference": _known(difference.mean),
            f"{metric}_difference_low": _known(difference.low),
            f"{metric}_difference_high": _known(difference.high),
            f"{metric}_difference_n": difference.n,
            f"{metric}_verdict": difference.verdict,
        }
    return record | {name: _known(row.cost[name]) for name in COSTS}


def as_json(comparison: Comparison) -> str:
    """Everything, with the values seed by seed and the runs' folders."""
    data = {
        "solved": comparison.solved,
        "against": comparison.against,
        "tables": [
            {
                "experiment": table.experiment,
                "task": table.task,
                "columns": table.columns,
                "metrics": table.metrics,
                "mixed": table.mixed,
                "notes": table.notes,
                "rows": [_row(table, row) for row in table.rows],
            }
            for table in comparison.tables
        ],
        "unreadable": [{"folder": run.folder, "reason": run.reason} for run in comparison.unreadable],
    }
    return json.dumps(data, indent=1, allow_nan=False, default=str) + "\n"


def _row(table: Table, row: Row) -> dict[str, Any]:
    scores = {
        metric: {
            **{name: _known(getattr(s, name)) for name in SCORE_CELLS},
            "values": [
                dict(zip((*table.mixed, "seed"), unit, strict=True)) | {"value": _known(value)}
                for unit, value in s.values.items()
            ],
        }
        for metric, s in row.scores.items()
    }
    differences = {
        metric: {name: _known(getattr(d, name)) for name in ("mean", "low", "high", "n", "verdict")}
        for metric, d in row.differences.items()
    }
    return {
        "keys": row.keys,
        "seeds": row.n,
        "incomplete": row.incomplete,
        "scores": scores,
        "differences": differences,
        "baseline": row.baseline,
        "cost": {name: _known(value) for name, value in row.cost.items()},
        "folders": row.folders,
    }


def _known(value: Any) -> Any:
    """None for what is not a finite number: JSON has no other word for it, and a CSV cell stays empty."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
