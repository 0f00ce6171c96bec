"""Names for a reader: of rows, of evaluation sets, of the groups that errors are split by."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lcbench.results.comparison import Row
from lcbench.results.keys import ABSENT, shown

_GROUP = re.compile(r"(?P<axis>[a-z_]+?)_(?P<first>\d+)(?:_(?P<last>\d+))?")


@dataclass(frozen=True)
class Group:
    """One group of a metric that a task splits by a fact: ``distance_4_7``.

    Args:
        axis: the fact: ``distance``.
        first, last: its smallest and largest value.
    """

    axis: str
    first: int
    last: int

    @property
    def label(self) -> str:
        """``4-7``, or ``4`` where it is one value."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def group_of(name: str) -> Group | None:
    """The group that the last part of a score's name says; None if it says none."""
    match = _GROUP.fullmatch(name)
    if match is None:
        return None
    first = int(match["first"])
    return Group(match["axis"], first, int(match["last"] or first))


def row_labels(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """A short name a row, all different: the choices of groups, then ``key=value`` of other keys.

    Left out are keys that the others make unnecessary, and a group's usual choice: of a decoder with five encodings
    and an LSTM without any, the names are the encodings, and ``lstm``.
    """
    needed = list(columns)
    for column in [column for column in reversed(columns) if "." in column]:
        fewer = [each for each in needed if each != column]
        if len({tuple(repr(row.keys.get(each)) for each in fewer) for row in rows}) == len(rows):
            needed = fewer
    groups = [column for column in needed if "." not in column]
    usual = {column: _usual([row.keys.get(column, ABSENT) for row in rows]) for column in groups}
    short = [_label(row, needed, usual) for row in rows]
    full = [_label(row, needed, {}) for row in rows]
    repeated = {label for label, times in Counter(short).items() if times > 1 or not label}
    labels = [long if label in repeated else label for label, long in zip(short, full, strict=True)]
    if len(set(labels)) == len(labels):
        return labels
    return [f"{label} ({i + 1})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]


def _usual(values: Sequence[Any]) -> Any:
    """What more than half of the rows have; None if there is no such value."""
    (value, times), *_ = Counter(map(repr, values)).most_common(1)
    return next(each for each in values if repr(each) == value) if 2 * times > len(values) else None


def _label(row: Row, columns: Sequence[str], usual: dict[str, Any]) -> str:
    parts = []
    for column in columns:
        value = row.keys.get(column, ABSENT)
        if value is ABSENT or (column in usual and usual[column] is not None and value == usual[column]):
            continue
        parts.append(shown(value) if "." not in column else f"{column.rpartition('.')[2]}={shown(value)}")
    return " ".join(parts) or ("all runs" if not columns else "")
