"""The order of a table's rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lcbench.errors import ConfigurationError, closest
from lcbench.results.comparison import COSTS, Row, Table
from lcbench.results.keys import ABSENT, order_of_values
from lcbench.results.metrics import more_is_better


def arranged(tables: Sequence[Table], sort: str | None) -> list[Table]:
    """The tables with their rows sorted by a column, or as they are.

    Raises:
        ConfigurationError: if no table has the column.
    """
    if sort is None:
        return list(tables)
    name, backwards = sort.removeprefix("-"), sort.startswith("-")
    known = {name for table in tables for name in _sortable(table)}
    if name not in known:
        raise ConfigurationError(f"--sort {sort}: no such column; {closest(name, known)}")
    return [_sorted_table(table, name, backwards) for table in tables]


def _sorted_table(table: Table, name: str, backwards: bool) -> Table:
    column = _sortable(table).get(name, name)
    rows = [row for row in table.rows if _value(row, column) is not ABSENT]
    rest = [row for row in table.rows if _value(row, column) is ABSENT]
    best_first = column in table.metrics and more_is_better(column)
    rows.sort(key=lambda row: order_of_values(_value(row, column)), reverse=backwards != best_first)
    return replace(table, rows=(*rows, *rest))


def _value(row: Row, column: str) -> Any:
    if column in row.scores:
        mean = row.scores[column].mean
        return ABSENT if math.isnan(mean) else mean
    if column in COSTS:
        cost = row.cost[column]
        return ABSENT if cost is None else cost
    return row.n if column == "seeds" else row.keys.get(column, ABSENT)


def _sortable(table: Table) -> dict[str, str]:
    """Names a table can be sorted by, and the column each means: a set alone means the first metric on it."""
    names = {name: name for name in ("seeds", *COSTS, *table.columns, *table.metrics)}
    for metric in table.metrics:
        names.setdefault(metric.split("/")[0], metric)
    return names
