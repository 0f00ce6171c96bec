"""The comparison of runs: one row per configuration, its seeds together.

A configuration's score is the mean over its seeds, with the 95 % interval of Student's t over them. One seed has no
spread to estimate that from, and seeds that all score the same claim a spread of zero that no evaluation set of finite
size can show: there the interval is the runs' own, which reflects how much was scored. Runs that are not completed are
counted and never averaged. Several runs of one configuration and seed count as one, by their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, mean, median
from typing import Any

from lcbench.errors import ConfigurationError, closest
from lcbench.results.arrange import arranged
from lcbench.results.baseline import compared
from lcbench.results.comparison import AMONG_THE_BEST, BEST, COSTS, Comparison, Row, Summary, Table, Unit
from lcbench.results.keys import columns, key_of, label_of, order_of_values, value_of, varying
from lcbench.results.metrics import is_share, metrics_of, more_is_better
from lcbench.results.notes import notes_on
from lcbench.results.runs import Run, Unreadable, read_runs
from lcbench.results.statistics import student, without_spread


def compare(
    paths: Iterable[str | Path],
    *,
    metrics: Sequence[str] = (),
    by: Sequence[str] = (),
    sort: str | None = None,
    solved: float = 0.01,
    against: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare all runs at or below ``paths``.

    Args:
        metrics: ``set/metric``, or a set (its headline metric), or a metric (on every set); without any, the headline
            metric on every evaluation set that the runs share.
        by: columns that make a row, instead of the whole configuration.
        sort: a column, metric or cost to sort by: scores best first, all else ascending; ``-`` before it reverses.
        solved: a seed has solved a set with an error up to this (an accuracy from 1 minus this).
        against: the baseline, such as ``{"position": "rope"}``. Where several rows fit it, each row is compared with
            that which is the same in all other columns.

    Raises:
        ConfigurationError: if a path holds no run, or a name is unknown.
    """
    runs, unreadable = read_runs(paths)
    return compare_runs(runs, unreadable, metrics=metrics, by=by, sort=sort, solved=solved, against=against)


def compare_runs(
    runs: Sequence[Run],
    unreadable: Sequence[Unreadable] = (),
    *,
    metrics: Sequence[str] = (),
    by: Sequence[str] = (),
    sort: str | None = None,
    solved: float = 0.01,
    against: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare runs that have been read; see ``compare``."""
    if not 0 <= solved <= 1:
        raise ConfigurationError(f"solved={solved:g}: must be an error between 0 and 1, such as 0.01.")
    if not runs:
        raise ConfigurationError(f"no run can be read: {unreadable[0].folder}: {unreadable[0].reason}.")
    chosen_keys = [_known_key(label, runs) for label in by]
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.experiment, value_of(run.config, "task._target_")), []).append(run)
    chosen_metrics = metrics_of(metrics, groups)
    tables = [_table(name, group, chosen_metrics[name], chosen_keys, solved) for name, group in groups.items()]
    tables = arranged(tables, sort)
    if against:
        for label in against:
            _known_key(label, runs)
        tables = compared(tables, against)
    return Comparison(tuple(tables), tuple(unreadable), solved, dict(against or {}))


def _known_key(label: str, runs: Sequence[Run]) -> str:
    known = {key for run in runs for key in run.config}
    key = key_of(label, known)
    if key is None:
        raise ConfigurationError(f"{label}: no such key in these runs; {closest(label, map(label_of, known))}")
    return key


def _table(
    name: tuple[str, str], runs: Sequence[Run], metrics: Sequence[str], by: Sequence[str], solved: float
) -> Table:
    vary = varying([run.config for run in runs])
    configurations: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        configurations.setdefault(tuple(value_of(run.config, key) for key in vary), []).append(run)
    apart = columns([alike[0].config for alike in configurations.values()])
    chosen = list(by) or apart
    members: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        members.setdefault(tuple(value_of(run.config, key) for key in chosen), []).append(run)
    mixed = [
        key
        for key in apart
        if key not in chosen and any(len({value_of(run.config, key) for run in row}) > 1 for row in members.values())
    ]
    rows = [_row(chosen, row, metrics, mixed, solved) for row in members.values()]
    rows.sort(key=lambda row: [order_of_values(value_of(row.runs[0].config, key)) for key in chosen])
    marked = _marked(rows, metrics)
    notes = notes_on(runs, metrics, mixed, rows)
    return Table(
        experiment=name[0],
        task=name[1],
        columns=tuple(map(label_of, chosen)),
        metrics=tuple(metrics),
        rows=tuple(marked),
        mixed=tuple(map(label_of, mixed)),
        notes=notes,
    )


def _row(keys: Sequence[str], runs: Sequence[Run], metrics: Sequence[str], mixed: Sequence[str], solved: float) -> Row:
    units: dict[Unit, list[Run]] = {}
    incomplete: dict[str, int] = {}
    for run in runs:
        if run.completed:
            unit = (*(value_of(run.config, key) for key in mixed), run.seed)
            units.setdefault(unit, []).append(run)
        else:
            incomplete[run.status] = incomplete.get(run.status, 0) + 1
    scores = {metric: summary for metric in metrics if (summary := _summary(units, metric, solved))}
    completed = [run.record for run in runs if run.completed]
    cost: dict[str, float | None] = {}
    for name in COSTS:
        known = [value for record in completed if (value := record.get(f"cost/{name}")) is not None]
        cost[name] = mean(known) if known else None
    return Row(
        keys={label_of(key): value_of(runs[0].config, key) for key in keys if key in runs[0].config},
        n=len(units),
        scores=scores,
        cost=cost,
        incomplete=dict(sorted(incomplete.items())),
        folders=tuple(run.folder for run in runs),
        runs=tuple(runs),
    )


def _summary(units: Mapping[Unit, Sequence[Run]], metric: str, solved: float) -> Summary | None:
    values, own = {}, {}
    for unit, runs in sorted(units.items(), key=_order_of_units):
        records = [run.record for run in runs if run.record.get(f"scores/{metric}") is not None]
        if records:
            values[unit] = fmean(record[f"scores/{metric}"] for record in records)
            lows, highs = ([_end(record, metric, end) for record in records] for end in ("low", "high"))
            own[unit] = fmean(lows), fmean(highs)
    if not values:
        return None
    summary = Summary(
        mean=fmean(values.values()),
        median=median(values.values()),
        low=math.nan,
        high=math.nan,
        n=len(values),
        solved=None,
        values=values,
        own=own,
    )
    seeds = list(values.values())
    low, high = summary.own_interval(values) if without_spread(seeds) else student(seeds)
    if not is_share(metric):
        return replace(summary, low=low, high=high)
    passed = [value >= 1 - solved if more_is_better(metric) else value <= solved for value in values.values()]
    # t knows nothing of the ends of a share
    return replace(summary, low=max(low, 0.0), high=min(high, 1.0), solved=sum(passed) / len(passed))


def _end(record: dict[str, Any], metric: str, end: str) -> float:
    value = record.get(f"scores/{metric}_{end}")
    return math.nan if value is None else value


def _order_of_units(item: tuple[Unit, object]) -> list[tuple[int, float, str]]:
    return [order_of_values(value) for value in item[0]]


def _marked(rows: Sequence[Row], metrics: Sequence[str]) -> list[Row]:
    """Rows with their marks; none where there is nothing to choose from."""
    marked = list(rows)
    for metric in metrics:
        found = {i: row.scores[metric] for i, row in enumerate(rows) if metric in row.scores}
        sign = -1 if more_is_better(metric) else 1
        numbers = [i for i, summary in found.items() if not math.isnan(summary.mean)]
        if len(numbers) < 2:
            continue
        best = min(numbers, key=lambda i: sign * found[i].mean)
        # an interval that is not known is not clear of any other
        near = [i for i in numbers if i == best or not _clear(found[i], found[best])]
        for i in near:
            mark = BEST if near == [best] else AMONG_THE_BEST
            marked[i] = replace(marked[i], scores={**marked[i].scores, metric: replace(found[i], mark=mark)})
    return marked


def _clear(a: Summary, b: Summary) -> bool:
    return a.low > b.high or b.low > a.high
