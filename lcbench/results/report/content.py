"""What a page and its figures show, as plain data made once from the runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lcbench.results.compare import compare_runs
from lcbench.results.comparison import Comparison, Row, Summary, Table
from lcbench.results.keys import ABSENT, shown, value_of, varying
from lcbench.results.metrics import is_share, more_is_better
from lcbench.results.report.curves import curves_of
from lcbench.results.report.names import group_of, row_labels
from lcbench.results.runs import Run, Unreadable
from lcbench.task.cell import parse_cell

#: one line of what a figure draws
Datum = dict[str, Any]

#: what the facts are that tasks split their scores by
AXES = {
    "distance": "distance to the write, in pairs",
    "output": "index in the output",
    "statements": "number of statements",
}


@dataclass(frozen=True)
class Section:
    """One experiment: its table, and what the figures draw of it.

    Args:
        table: the comparison, with all scores that its runs have.
        shown: the metrics of the summary, as ``lcbench compare`` would choose them.
        labels: a name a row.
        headline: the metric that results are ranked by.
        metrics: names of metrics, the headline first; without those that a task splits by a fact.
        sets: evaluation sets.
        chance: by metric, what guessing scores.
        scores, seeds, lengths, groups, curves: what the figures draw; every line has its ``row``, and all but curves
            its ``set`` and ``metric``.
    """

    table: Table
    shown: tuple[str, ...]
    labels: list[str]
    headline: str
    metrics: list[str]
    sets: list[str]
    chance: dict[str, float]
    scores: list[Datum]
    seeds: list[Datum]
    lengths: list[Datum]
    groups: list[Datum]
    curves: list[Datum]


def sections_of(
    runs: Sequence[Run],
    unreadable: Sequence[Unreadable] = (),
    *,
    by: Sequence[str] = (),
    against: Mapping[str, str] | None = None,
    solved: float = 0.01,
) -> tuple[Comparison, list[Section]]:
    """The comparison as ``lcbench compare`` makes it, and a section for each of its tables."""
    comparison = compare_runs(runs, unreadable, by=by, solved=solved, against=against)
    everything = list(dict.fromkeys(score for run in runs if run.completed for score in run.scores()))
    complete = compare_runs(runs, metrics=everything, by=by, solved=solved, against=against)
    return comparison, [
        section_of(table, brief.metrics, brief.notes)
        for table, brief in zip(complete.tables, comparison.tables, strict=True)
    ]


def section_of(table: Table, brief: Sequence[str] = (), notes: Sequence[str] = ()) -> Section:
    """What the figures draw of a table that holds all scores.

    Args:
        brief: the metrics of the summary; without any, the headline metric on every set.
        notes: in place of the table's, which also speak of every detail.
    """
    record = table.rows[0].runs[0].record
    headline = record["task/headline"]
    plain = [metric for metric in table.metrics if metric.count("/") == 1]
    names = sorted({metric.split("/")[1] for metric in plain}, key=lambda name: (name != headline, name))
    chosen = tuple(brief) or tuple(metric for metric in plain if metric.split("/")[1] == headline)
    return Section(
        table=_with_notes(table, notes),
        shown=chosen,
        labels=row_labels(table.rows, table.columns),
        headline=headline,
        metrics=names,
        sets=list(dict.fromkeys(metric.split("/")[0] for metric in plain)),
        chance={name: value for name in names if (value := record.get(f"chance/{name}")) is not None},
        scores=list(_scores(table.rows, plain)),
        seeds=list(_seeds(table.rows, plain)),
        lengths=_lengths(table.rows, plain),
        groups=_groups(table.rows, table.metrics),
        curves=[
            {"row": i, "step": p.step, "quantity": p.quantity, "mean": p.mean, "low": p.low, "high": p.high}
            for i, row in enumerate(table.rows)
            for p in curves_of(row.runs)
        ],
    )


def _with_notes(table: Table, notes: Sequence[str]) -> Table:
    return replace(table, notes=tuple(notes)) if notes else table


def _scores(rows: Sequence[Row], metrics: Sequence[str]) -> Iterable[Datum]:
    for i, row in enumerate(rows):
        for metric in metrics:
            if metric in row.scores:
                summary = row.scores[metric]
                share = None if summary.solved is None else round(summary.solved * summary.n)
                datum = _datum(i, metric, summary) | {"median": summary.median, "n": summary.n, "solved": share}
                yield datum | {"mark": summary.mark} | _difference(row, metric)


def _difference(row: Row, metric: str) -> Datum:
    found = row.differences.get(metric)
    if found is None:
        return {}
    return {"difference": found.mean, "difference_low": found.low, "difference_high": found.high} | {
        "verdict": found.verdict
    }


def _seeds(rows: Sequence[Row], metrics: Sequence[str]) -> Iterable[Datum]:
    for i, row in enumerate(rows):
        for metric in metrics:
            if metric in row.scores:
                evaluation_set, _, name = metric.partition("/")
                for unit, value in row.scores[metric].values.items():
                    if math.isfinite(value):
                        yield {"row": i, "set": evaluation_set, "metric": name, "seed": unit[-1], "value": value}


def _lengths(rows: Sequence[Row], metrics: Sequence[str]) -> list[Datum]:
    """Scores at more than one length of the same distribution."""
    found: dict[tuple[str, str], list[Datum]] = {}
    for i, row in enumerate(rows):
        trained = row.runs[0].config.get("task.length")
        for metric in metrics:
            evaluation_set, _, name = metric.partition("/")
            cell = parse_cell(evaluation_set, trained)
            if metric not in row.scores or cell is None or cell.depth is not None:
                continue
            length = cell.length or trained
            if isinstance(length, int):
                base = cell.base or "in_distribution"
                datum = _datum(i, metric, row.scores[metric])
                found.setdefault((base, name), []).append(datum | {"base": base, "tokens": length})
    return [datum for data in found.values() if len({datum["tokens"] for datum in data}) > 1 for datum in data]


def _groups(rows: Sequence[Row], metrics: Sequence[str]) -> list[Datum]:
    """Scores that a task splits by a fact: ``sparse/error/distance_4_7``."""
    found = []
    for metric in metrics:
        parts = metric.split("/")
        group = group_of(parts[2]) if len(parts) == 3 else None
        if group is None:
            continue
        place = {"axis": group.axis, "first": group.first, "group": group.label}
        found += [_datum(i, metric, row.scores[metric]) | place for i, row in enumerate(rows) if metric in row.scores]
    return found


def _datum(row: int, metric: str, summary: Summary) -> Datum:
    evaluation_set, name = metric.split("/")[:2]
    return {"row": row, "set": evaluation_set, "metric": name, "mean": summary.mean} | {
        "low": summary.low,
        "high": summary.high,
    }


def differences_of(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Keys that differ between the rows' configurations, each with its value in every row."""
    configs = [row.runs[0].config for row in rows]
    return [
        (key, ["" if value is ABSENT else shown(value) for value in (value_of(config, key) for config in configs)])
        for key in varying(configs)
    ]


def share_metrics(section: Section) -> list[str]:
    """Names of the metrics that count outcomes out of all."""
    return [name for name in section.metrics if is_share(f"set/{name}")]


def rising_metrics(section: Section) -> list[str]:
    """Names of the metrics of which more is better."""
    return [name for name in section.metrics if more_is_better(f"set/{name}")]
