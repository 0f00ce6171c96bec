"""The tables of `lcbench cost`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcbench.cost.fit import Crossing, PowerLaw
from lcbench.cost.growth import TITLES, Settings
from lcbench.cost.plan import Plan
from lcbench.cost.step import PASSES, Work
from lcbench.cost.summary import QUANTITIES, Further, Row
from lcbench.results.sizes import human_bytes, human_count, human_seconds

#: processor time in a share of wall time, below which somebody else was running
BUSY = 0.9

WITHOUT_LENGTH = {
    "always": "the shortest length on",
    "never": "no length, by the fit",
    "unclear": "not told by these lengths",
    "unknown": "-",
}


def show(console: Console, rows: Sequence[Row], plan: Plan, settings: Settings) -> None:
    """Print what was measured, and what follows from it."""
    console.print(Text("\n" + scope_of(rows[0].subject.work, settings), style="dim"))
    for tables in (point_tables, exponent_tables, crossing_tables, check_tables, further_tables):
        for title, table in tables(rows):
            # not the table's own title, which would be broken to the table's width
            console.print(Text(f"\n{title}", style="bold"))
            console.print(table)
    console.print()
    for line in _notes(rows, plan, settings):
        console.print(Text(f"- {line}", style="dim"), soft_wrap=True)


def scope_of(work: Work, settings: Settings) -> str:
    """What was measured, in words."""
    numbers = "bfloat16 (mixed)" if work.precision == "bf16-mixed" else "float32"
    what = "the whole network"
    if work.scope == "layer":
        shape = work.shape
        what = f"one layer of attention with its projections, d_model {shape.d_model}, {shape.n_heads} heads"
    threads = "" if work.threads is None or work.device != "cpu" else f", threads {work.threads}"
    return (
        f"measured: {what}; batch 1, {numbers}, {work.device}{threads}. forward: as evaluation reads, no graph; "
        f"forward and backward: a training step without the optimizer. time: median of {settings.rounds} rounds "
        f"({settings.clock} clock), everything once a round. peak: what one step adds to the memory of a process of "
        "its own. of full: time in times of full attention's with rotary positions through the fused kernel, same "
        "rounds."
    )


def point_tables(rows: Sequence[Row]) -> Iterator[tuple[str, Table]]:
    """A table a pass: a row a composition and length."""
    for name in PASSES:
        table = _table("tokens", "time", "of full", "peak", "operations", "state after")
        for row in rows:
            if row.name == name and row.points:
                table.add_row(row.subject.label)
                for length, point in sorted(row.points.items()):
                    ratio = row.ratios.get(length)
                    about = "" if point.exact else "~ "
                    table.add_row(
                        f"  {length:,}",
                        human_seconds(point.typical_seconds),
                        "-" if ratio is None else f"{ratio:.2f}",
                        "-" if point.peak_bytes is None else human_bytes(point.peak_bytes),
                        "-" if point.operations is None else about + human_count(point.operations),
                        "-" if point.state_bytes is None else human_bytes(point.state_bytes),
                    )
        if table.row_count:
            yield TITLES[name], table


def exponent_tables(rows: Sequence[Row]) -> Iterator[tuple[str, Table]]:
    """The fitted exponents."""
    table = _table("", "time", "peak memory", "fitted to tokens")
    for label, group in _by_label(row for row in rows if row.laws["time"] is not None):
        table.add_row(label)
        for row in group:
            law = row.laws["time"]
            assert law is not None
            cells = (_exponent(law), _exponent(row.laws["memory"]))
            table.add_row(f"  {TITLES[row.name]}", *cells, f"{law.shortest:,} to {law.longest:,}")
    if table.row_count:
        yield "cost ~ tokens ^ exponent, with 95 % interval", table


def _exponent(law: PowerLaw | None) -> str:
    if law is None:
        return "-"
    interval = "" if math.isnan(law.low) else f" ({law.low:.2f} to {law.high:.2f})"
    return f"{law.exponent:.2f}{interval}"


def crossing_tables(rows: Sequence[Row]) -> Iterator[tuple[str, Table]]:
    """From which length on each costs less than full attention."""
    table = _table("", "time", "peak memory")
    compared = (row for row in rows if not row.reference and row.crossings["time"].how != "unknown")
    for label, group in _by_label(compared):
        table.add_row(label)
        for row in group:
            table.add_row(f"  {TITLES[row.name]}", *(_crossing(row.crossings[kind]) for kind in QUANTITIES))
    if table.row_count:
        yield "cheaper than full attention from", table


def _crossing(found: Crossing) -> str:
    if found.length is None:
        return WITHOUT_LENGTH[found.how]
    about = f"{found.length:,.0f} tokens"
    return about if found.how == "measured" else f"{about} (extrapolated)"


def check_tables(rows: Sequence[Row]) -> Iterator[tuple[str, Table]]:
    """Measured over predicted."""
    title = (
        "measured / predicted, at the longest length: the peak by shapes, the time by the fit to all shorter lengths, "
        "and by the operations from that at the length before"
    )
    table = _table("", "tokens", "peak", "time by fit", "time by operations")
    for label, group in _by_label(row for row in rows if row.check is not None):
        table.add_row(label)
        for row in group:
            check = row.check
            assert check is not None
            ratios = (check.bytes, check.by_law, check.by_operations)
            cells = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            table.add_row(f"  {TITLES[row.name]}", f"{check.length:,}", *cells)
    if table.row_count:
        yield title, table


def further_tables(rows: Sequence[Row]) -> Iterator[tuple[str, Table]]:
    """A table a length that nobody ran: the whole sequence at once."""
    for number, length in enumerate(further.length for further in rows[0].further):
        table = _table(
            *("", "operations", "peak", "state after", "time by operations", "time by fit"),
        )
        for label, group in _by_label(row for row in rows if row.points):
            table.add_row(label)
            for row in group:
                table.add_row(f"  {TITLES[row.name]}", *_further(row.further[number]))
        yield f"extrapolated to {length:,} tokens at once, with 95 % interval of the fit", table


def _further(further: Further) -> Iterator[str]:
    about = "" if further.exact else "~ "
    yield "-" if further.operations is None else about + human_count(further.operations)
    yield "-" if further.bytes is None else about + human_bytes(further.bytes)
    yield "-" if further.state_bytes is None else human_bytes(further.state_bytes)
    yield "-" if further.by_operations is None else human_seconds(further.by_operations)
    middle, low, high = further.by_law or (math.nan, math.nan, math.nan)
    interval = "" if math.isnan(low) else f"\n({human_seconds(low)} to {human_seconds(high)})"
    yield "-" if math.isnan(middle) else human_seconds(middle) + interval


def _by_label(rows: Iterable[Row]) -> Iterator[tuple[str, Iterator[Row]]]:
    return groupby(rows, lambda row: row.subject.label)


def _notes(rows: Sequence[Row], plan: Plan, settings: Settings) -> Iterator[str]:
    shares = [point.processor_share for row in rows for point in row.points.values()]
    if settings.clock == "wall" and rows[0].subject.work.device == "cpu" and min(shares) < BUSY:
        yield (
            f"the machine had other work: at some length the processor worked {100 * min(shares):.0f} % of the time; "
            "exponents of wall time then mean little, --clock cpu takes the processor's time"
        )
    for row in rows:
        if row.end is not None:
            yield f"{row.subject.label}, {TITLES[row.name]}: stopped before {row.end[0]:,} tokens: {row.end[1]}"
    for label, reason in plan.refused:
        yield f"{label}: refused: {reason}"
    yield from plan.notes
    uncounted = {(row.subject.label, f.reason) for row in rows for f in row.further if f.reason}
    for label, reason in sorted(uncounted):
        yield f"{label}: no counts so far out: {reason}"
    if any(not further.exact and further.operations is not None for row in rows for further in row.further):
        yield "~: counts that leave a rest beside the polynomial they are continued by"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number == 0)
    return table
