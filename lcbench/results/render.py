"""A comparison as text: everything on one line a row where the console is wide enough, else what fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from lcbench.results.comparison import BEST, COSTS, Comparison, Row, Table
from lcbench.results.keys import ABSENT, shown
from lcbench.results.layout import Column, fit, laid_out
from lcbench.results.metrics import is_share
from lcbench.results.notes import count
from lcbench.results.table import human_bytes

COST_CELLS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", lambda value: f"{value:,.0f}"),
    "tokens_per_second": ("tokens/s", lambda value: f"{value:,.0f}"),
    "peak_memory_bytes": ("peak memory", human_bytes),
    "wall_seconds": ("wall time", lambda value: f"{value:,.1f} s"),
    "train_flops": ("FLOP", lambda value: f"{value:.3g}"),
}


def render(comparison: Comparison, console: Console) -> None:
    """Print the comparison."""
    for table in comparison.tables:
        console.print(Text(_title(table), style="bold"), soft_wrap=True)
        _print(_scores(table), console)
        compared = [row for row in table.rows if row.differences]
        if compared:
            typed = ",".join(f"{key}={value}" for key, value in comparison.against.items())
            console.print(Text(f"\nminus {typed}, {_over(compared)}", style="bold"), soft_wrap=True)
            _print(_differences(table, compared), console)
        for note in table.notes:
            console.print(Text(f"- {note}", style="dim"))
        console.print()
    for line in _legend(comparison):
        console.print(Text(line, style="dim"))
    for run in comparison.unreadable:
        console.print(Text(f"skipped {run.folder}: {run.reason}", style="yellow"), soft_wrap=True)


def _over(rows: Sequence[Row]) -> str:
    counts = {_common(row) for row in rows}
    return f"over {count(counts.pop(), 'common seed')}" if len(counts) == 1 else "over common seeds"


def _title(table: Table) -> str:
    name = table.experiment if table.experiment == table.task else f"{table.experiment} (task {table.task})"
    runs = sum(len(row.runs) for row in table.rows)
    return f"{name}: {count(runs, 'run')}, {count(len(table.rows), 'row' if table.mixed else 'configuration')}"


def _legend(comparison: Comparison) -> list[str]:
    rows = [row for table in comparison.tables for row in table.rows]
    scores = [summary for row in rows for summary in row.scores.values()]
    lines = []
    if scores:
        lines.append(
            "95 % interval: Student's t over seeds; with one seed, or where all score the same, the run's own, from "
            "how much was scored"
        )
    if any(summary.solved is not None for summary in scores):
        lines.append(f"solved: seeds with an error of at most {100 * comparison.solved:g} %")
    if any(summary.mark for summary in scores):
        lines.append("* best: its interval overlaps no other's   ~ not told apart from the best: intervals overlap")
    if any(row.differences for row in rows):
        lines.append("better, worse: the interval of the differences, paired by two seeds or more, excludes zero")
    return lines


def _key_columns(table: Table, rows: Sequence[Row]) -> list[Column]:
    return [
        Column(column, tuple(shown(row.keys.get(column, ABSENT)) for row in rows), kind="key", left=True)
        for column in table.columns
    ]


def _scores(table: Table) -> list[Column]:
    rows = table.rows
    columns = _key_columns(table, rows)
    columns.append(Column("runs" if table.mixed else "seeds", tuple(str(row.n) for row in rows)))
    if any(row.incomplete for row in rows):
        counts = [", ".join(f"{n} {status}" for status, n in row.incomplete.items()) for row in rows]
        columns.append(Column("not completed", tuple(counts), kind="incomplete"))
    for metric in table.metrics:
        columns += _score_columns(metric, rows)
    for name in COSTS:
        title, show = COST_CELLS[name]
        values = [row.cost[name] for row in rows]
        if any(value is not None for value in values):
            columns.append(Column(title, tuple("" if v is None else show(v) for v in values), kind=name))
    return columns


def _score_columns(metric: str, rows: Sequence[Row]) -> list[Column]:
    found = [row.scores.get(metric) for row in rows]
    number, unit = _format(metric)
    blank = " " * 2 * any(summary and summary.mark for summary in found)
    means = [f"{number(s.mean)}{unit}{f' {s.mark}' if s.mark else blank}" if s else "" for s in found]
    intervals = [_interval(s.low, s.high, number) if s else "" for s in found]
    medians = [f"{number(s.median)}{unit}" if s else "" for s in found]
    best = frozenset(i for i, summary in enumerate(found) if summary and summary.mark == BEST)
    columns = [
        Column(metric, tuple(means), kind="mean", bold=best),
        Column("95 % interval", tuple(intervals), kind="interval"),
        Column("median", tuple(medians), kind="median"),
    ]
    if is_share(metric):
        solved = [f"{round(s.solved * s.n)}/{s.n}" if s and s.solved is not None else "" for s in found]
        columns.append(Column("solved", tuple(solved), kind="solved"))
    return columns


def _common(row: Row) -> int:
    return max(difference.n for difference in row.differences.values())


def _differences(table: Table, rows: Sequence[Row]) -> list[Column]:
    columns = _key_columns(table, rows)
    counts = [_common(row) for row in rows]
    if len(set(counts)) > 1:
        columns.append(Column("common", tuple(map(str, counts))))
    for metric in table.metrics:
        found = [row.differences.get(metric) for row in rows]
        number, unit = _format(metric, "+")
        means = [f"{number(d.mean)}{unit}" if d else "" for d in found]
        intervals = [_interval(d.low, d.high, number) if d else "" for d in found]
        clear = frozenset(i for i, difference in enumerate(found) if difference and difference.verdict)
        columns += [
            Column(metric, tuple(means), kind="mean", bold=clear),
            Column("95 % interval", tuple(intervals), kind="interval"),
            Column("", tuple(d.verdict if d else "" for d in found), kind="verdict", left=True),
        ]
    return columns


def _format(metric: str, sign: str = "") -> tuple[Callable[[float], str], str]:
    """How a metric's numbers are written, and their unit."""
    if is_share(metric):
        return lambda value: f"{100 * value:{sign}.2f}", " %"
    return lambda value: f"{value:{sign}.4g}", ""


def _interval(low: float, high: float, number: Callable[[float], str]) -> str:
    return "unknown" if math.isnan(low) or math.isnan(high) else f"{number(low)} to {number(high)}"


def _print(columns: list[Column], console: Console) -> None:
    fitting, left_out = fit(columns, console.width)
    console.print(laid_out(fitting), soft_wrap=True)
    if left_out:
        names = ", ".join(dict.fromkeys(column.title.replace("\n", "") for column in left_out))
        console.print(Text(f"- left out at {console.width} columns: {names}; --csv has all", style="dim"))
