"""The paired comparison: each row minus a baseline, seed by seed.

Two configurations that share a seed share what the seed decides (the order of the data, and the initialisation as far
as their shapes agree), so the differences seed by seed spread less than the scores do.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from lcbench.errors import ConfigurationError, closest
from lcbench.results.comparison import Difference, Row, Summary, Table
from lcbench.results.keys import ABSENT, is_value, key_of, label_of, shown, value_of
from lcbench.results.metrics import more_is_better
from lcbench.results.notes import count
from lcbench.results.statistics import student, without_spread


def compared(tables: Sequence[Table], against: Mapping[str, str]) -> list[Table]:
    """The tables with every row's difference from its baseline.

    Raises:
        ConfigurationError: if no row fits ``against``, or too many do.
    """
    fitting = {id(table): [row for row in table.rows if fits(row, against)] for table in tables}
    if not any(fitting.values()):
        raise ConfigurationError(_not_found([row for table in tables for row in table.rows], against))
    return [_compared(table, fitting[id(table)], against) for table in tables]


def fits(row: Row, against: Mapping[str, str]) -> bool:
    """Whether all runs of the row have these values, as they are typed, of these columns."""
    return all(is_value(value, text) for key, text in against.items() for value in [_value(row, key)])


def _value(row: Row, label: str) -> object:
    """The value that all runs of the row have; an empty list where they differ."""
    key = key_of(label, {key for run in row.runs for key in run.config}) or label
    values = {value_of(run.config, key) for run in row.runs}
    return values.pop() if len(values) == 1 else []


def _not_found(rows: Sequence[Row], against: Mapping[str, str]) -> str:
    asked = _typed(against)
    for label, text in against.items():
        values = {shown(_value(row, label)) for row in rows} - {"", "[]"}
        if text not in values and not any(fits(row, {label: text}) for row in rows):
            return f"--against {asked}: no row has {label}={text}; {closest(text, values)}"
    return f"--against {asked}: no row has all of these; take away one of {', '.join(against)}."


def _typed(against: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in against.items())


def _compared(table: Table, candidates: Sequence[Row], against: Mapping[str, str]) -> Table:
    if not candidates:
        return replace(table, notes=(*table.notes, f"no row here fits the baseline {_typed(against)}"))
    other = [column for column in table.columns if column not in against]
    chosen = {label for label in against if "." not in label}
    rows: list[Row] = []
    without = strangers = bare = 0
    baselines = {id(candidate) for candidate in candidates}
    for row in table.rows:
        if id(row) in baselines:
            rows.append(replace(row, baseline=True))
            continue
        same = candidates if len(candidates) == 1 else [c for c in candidates if _agree(c, row, other, chosen)]
        if len(same) > 1:
            raise ConfigurationError(_ambiguous(same, table, against))
        if not same:
            without += 1
            rows.append(row)
            continue
        found = {m: difference_of(row.scores[m], same[0].scores[m], m) for m in row.scores if m in same[0].scores}
        differences = {metric: each for metric, each in found.items() if each}
        strangers += bool(found) and not differences
        bare += bool(row.scores) and not found
        rows.append(replace(row, differences=differences))
    notes = list(table.notes)
    if without:
        notes.append(f"without a baseline that has the same {' and '.join(other)}: {count(without, 'row')}")
    if strangers:
        notes.append(f"without a seed in common with the baseline: {count(strangers, 'row')}")
    if bare:
        notes.append(f"with a baseline that has no such score: {count(bare, 'row')}")
    return replace(table, rows=tuple(rows), notes=tuple(notes))


def _agree(a: Row, b: Row, columns: Sequence[str], chosen: Container[str]) -> bool:
    """Whether the rows are the same in these columns; options of the chosen groups count where both rows have them."""
    return all(
        a.keys.get(column, ABSENT) == b.keys.get(column, ABSENT)
        for column in columns
        if column.split(".")[0] not in chosen or (column in a.keys and column in b.keys)
    )


def _ambiguous(rows: Sequence[Row], table: Table, against: Mapping[str, str]) -> str:
    differ = [column for column in table.columns if len({row.keys.get(column) for row in rows}) > 1]
    example = next(column for column in differ if column in rows[0].keys)
    return (
        f"--against {_typed(against)}: {len(rows)} rows fit, which differ in {', '.join(map(label_of, differ))}; name "
        f"one, such as {_typed(against)},{example}={shown(rows[0].keys[example])}."
    )


def difference_of(ours: Summary, baseline: Summary, metric: str) -> Difference | None:
    """Ours minus the baseline's; None without a common seed."""
    common = [unit for unit in ours.values if unit in baseline.values]
    if not common:
        return None
    differences = [ours.values[unit] - baseline.values[unit] for unit in common]
    if without_spread(differences):
        (our_low, our_high), (its_low, its_high) = ours.own_interval(common), baseline.own_interval(common)
        low, high = our_low - its_high, our_high - its_low
    else:
        low, high = student(differences)
    verdict = ""
    # what one seed says of the two, another may not
    if len(common) > 1 and (low > 0 or high < 0):
        verdict = "better" if (low > 0) == more_is_better(metric) else "worse"
    return Difference(fmean(differences), low, high, len(common), verdict)
