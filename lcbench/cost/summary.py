"""What follows from the points: ratios to full attention, exponents, crossings, and what lies beyond."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from lcbench.cost.fit import Crossing, PowerLaw, crossing, power_law
from lcbench.cost.growth import Growth, Series
from lcbench.cost.plan import Plan, Subject
from lcbench.cost.points import Point
from lcbench.cost.step import PASSES, Pass

Quantity = Literal["time", "memory"]
QUANTITIES: tuple[Quantity, ...] = ("time", "memory")


@dataclass(frozen=True)
class Check:
    """Measured over predicted at the longest length; None where there is nothing to predict from.

    Args:
        length: tokens.
        bytes: the peak, predicted from shapes.
        by_law: the time, predicted by the law through all shorter lengths.
        by_operations: the time, predicted from that at the length before and the operations of both.
    """

    length: int
    bytes: float | None
    by_law: float | None
    by_operations: float | None


@dataclass(frozen=True)
class Further:
    """A pass at a length that nobody ran.

    Args:
        length: tokens.
        operations: by shapes.
        bytes: the peak, by shapes.
        exact: whether the counts leave no rest.
        state_bytes: by formula.
        by_law: seconds by the fitted law, and their 95 % interval.
        by_operations: seconds at the speed of the longest measured length.
        reason: why there are no counts; empty if there are.
    """

    length: int
    operations: float | None
    bytes: float | None
    exact: bool
    state_bytes: int | None
    by_law: tuple[float, float, float] | None
    by_operations: float | None
    reason: str


@dataclass(frozen=True)
class Row:
    """What is known of one pass of one composition.

    Args:
        subject: the composition.
        name: the pass.
        reference: whether it is the full attention that others are compared with.
        points: by length.
        ratios: time in times of full attention's, by length.
        laws: of time and of memory; None for fewer than two lengths.
        crossings: with full attention, of time and of memory.
        check: of the predictions; None before two lengths.
        further: at the lengths asked for.
        end: the length that was not measured any more, and why.
    """

    subject: Subject
    name: Pass
    reference: bool
    points: Mapping[int, Point]
    ratios: Mapping[int, float]
    laws: Mapping[Quantity, PowerLaw | None]
    crossings: Mapping[Quantity, Crossing]
    check: Check | None
    further: Sequence[Further]
    end: tuple[int, str] | None


def summarise(plan: Plan, growth: Growth, beyond: Sequence[int]) -> list[Row]:
    """A row for every series that has points, compositions together, in the order they were named.

    Args:
        plan: the compositions.
        growth: the measured series.
        beyond: lengths to extrapolate to.
    """
    found = {(series.subject.work.identity, series.name): series for series in growth.series}
    rows = []
    for subject in plan.subjects:
        for name in PASSES:
            series, full = (found[identity, name] for identity in (subject.work.identity, subject.reference))
            rows.append(
                Row(
                    subject=subject,
                    name=name,
                    reference=series is full,
                    points=series.points,
                    ratios=_ratios(series, full),
                    laws={quantity: power_law(costs(series.points, quantity)) for quantity in QUANTITIES},
                    crossings={
                        quantity: crossing(costs(series.points, quantity), costs(full.points, quantity))
                        for quantity in QUANTITIES
                    },
                    check=_check(series),
                    further=[_further(growth, series, length) for length in beyond],
                    end=series.end,
                )
            )
    return rows


def costs(points: Mapping[int, Point], quantity: Quantity) -> dict[int, float]:
    """Seconds, or bytes added to the peak, by length, as far as they are known."""
    if quantity == "time":
        return {length: point.typical_seconds for length, point in points.items() if point.seconds}
    return {length: point.peak_bytes for length, point in points.items() if point.peak_bytes}


def _ratios(series: Series, full: Series) -> dict[int, float]:
    """Medians of the ratios within a round."""
    found = {}
    for length, point in series.points.items():
        other = full.points.get(length)
        if other is not None and len(other.seconds) == len(point.seconds) > 0:
            found[length] = median(a / b for a, b in zip(point.seconds, other.seconds, strict=True))
    return found


def _check(series: Series) -> Check | None:
    lengths = sorted(series.points)
    if len(lengths) < 2:
        return None
    last, before = series.points[lengths[-1]], series.points[lengths[-2]]
    law = power_law(costs({length: series.points[length] for length in lengths[:-1]}, "time"))
    operations = None
    if last.operations and before.operations:
        operations = last.typical_seconds / (before.typical_seconds * last.operations / before.operations)
    return Check(
        length=last.length,
        bytes=last.peak_bytes / last.predicted_bytes if last.peak_bytes and last.predicted_bytes else None,
        by_law=None if law is None else last.typical_seconds / law.at(last.length)[0],
        by_operations=operations,
    )


def _further(growth: Growth, series: Series, length: int) -> Further:
    counted = series.counts.at(length)
    law = power_law(costs(series.points, "time"))
    last = series.points[max(series.points)] if series.points else None
    known = last is not None and last.operations is not None and counted is not None
    return Further(
        length=length,
        operations=None if counted is None else counted.operations,
        bytes=None if counted is None else counted.peak_bytes,
        exact=counted is not None and counted.exact,
        state_bytes=growth.state_bytes(series.subject, length),
        by_law=None if law is None else law.at(length),
        by_operations=last.typical_seconds * counted.operations / last.operations if known else None,  # type: ignore[union-attr,operator]
        reason="" if counted is not None else series.counts.reason,
    )


CSV_COLUMNS = (
    "composition",
    "pass",
    "tokens",
    "seconds",
    "seconds_least",
    "seconds_most",
    "of_full",
    "peak_bytes",
    "predicted_bytes",
    "operations",
    "exact",
    "state_bytes",
)


def as_csv(rows: Sequence[Row]) -> str:
    """A line a point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        for length, point in sorted(row.points.items()):
            times = (point.typical_seconds, min(point.seconds), max(point.seconds))
            sizes = (point.peak_bytes, point.predicted_bytes, point.operations, point.exact, point.state_bytes)
            writer.writerow([row.subject.label, row.name, length, *times, row.ratios.get(length), *sizes])
    return text.getvalue()


def as_data(rows: Sequence[Row], plan: Plan) -> dict[str, Any]:
    """All but the points, for JSON."""
    return {
        "compositions": [
            {"label": s.label, "identity": s.work.identity, "reference": s.reference, "work": asdict(s.work)}
            for s in plan.subjects
        ],
        "refused": [{"composition": label, "reason": reason} for label, reason in plan.refused],
        "growth": [_plain(_row(row)) for row in rows if row.points or row.end],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "composition": row.subject.label,
        "pass": row.name,
        "full": row.reference,
        "of_full": row.ratios,
        "exponents": {name: None if law is None else asdict(law) for name, law in row.laws.items()},
        "crossings": {} if row.reference else {name: asdict(found) for name, found in row.crossings.items()},
        "measured_over_predicted": None if row.check is None else asdict(row.check),
        "extrapolated": [asdict(further) for further in row.further],
        "ended": None if row.end is None else {"before": row.end[0], "reason": row.end[1]},
    }


def _plain(value: Any) -> Any:
    """JSON has no word for what is not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
