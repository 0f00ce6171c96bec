"""The figures of `lcbench cost`: time and memory against length, with the crossings with full attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcbench.cost.growth import TITLES
from lcbench.cost.step import PASSES, Pass
from lcbench.cost.summary import Quantity, Row, costs
from lcbench.results.pictures import altair, save

#: a crossing further out, in times of the longest measured length, is left to the table
FURTHEST = 8
#: colours that the colour-blind tell apart (Okabe and Ito); full attention is black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#7F7F7F")
MARKS = ("circle", "square", "triangle-up", "triangle-down")

UNITS: dict[Quantity, tuple[str, float]] = {"time": ("seconds", 1.0), "memory": ("MiB added to the peak", 2.0**20)}
HEADINGS: dict[Quantity, str] = {"time": "Time against length", "memory": "Peak memory against length"}


def figure(rows: Sequence[Row], quantity: Quantity, subtitle: str, paths: Sequence[Path]) -> None:
    """Write a figure with a panel a pass, as SVG or PNG by each path's ending.

    Raises:
        ConfigurationError: if the packages that draw it are not installed.
    """
    alt = altair("figures")
    labels = list(dict.fromkeys(row.subject.label for row in rows if row.points))
    full = {row.subject.label for row in rows if row.reference}
    others = [label for label in labels if label not in full]
    colours = {
        label: COLOURS[others.index(label) % len(COLOURS)] if label in others else "#000000" for label in labels
    }
    marks = {label: "diamond" if label in full else MARKS[labels.index(label) % len(MARKS)] for label in labels}
    dashes = {label: [6, 4] if label in full else [1, 0] for label in labels}
    panels = [_panel(alt, rows, quantity, name, colours, marks, dashes) for name in PASSES]
    chart = (
        alt.hconcat(*panels, spacing=30)
        .properties(title=alt.TitleParams(HEADINGS[quantity], subtitle=subtitle, anchor="start", fontSize=16))
        .configure(background="white")
        .configure_axis(labelFontSize=12, titleFontSize=13, gridColor="#E5E5E5")
        .configure_legend(labelFontSize=12, titleFontSize=13, symbolSize=90, labelLimit=320)
    )
    save(chart, paths, ppi=144)


def _panel(
    alt: Any,
    rows: Sequence[Row],
    quantity: Quantity,
    name: Pass,
    colours: dict[str, str],
    marks: dict[str, str],
    dashes: dict[str, list[int]],
) -> Any:
    """One pass: a line a composition, and a ring at each crossing with full attention."""
    unit, size = UNITS[quantity]
    lines: list[dict[str, Any]] = []
    crossings: list[dict[str, Any]] = []
    for row in rows:
        if row.name != name:
            continue
        found = costs(row.points, quantity)
        lines += [
            {"tokens": length, "cost": cost / size, "composition": row.subject.label} for length, cost in found.items()
        ]
        crossed = row.crossings[quantity]
        if row.reference or crossed.length is None or crossed.cost is None or not found:
            continue
        if crossed.length <= FURTHEST * max(found):
            about = "" if crossed.how == "measured" else "~"
            crossings.append(
                {
                    "tokens": crossed.length,
                    "cost": crossed.cost / size,
                    "composition": row.subject.label,
                    "text": f"{about}{_short(crossed.length)}",
                }
            )
    domain = list(colours)
    legend = alt.Legend(title=None, orient="bottom", columns=3)
    colour = alt.Color(
        "composition:N", sort=domain, scale=alt.Scale(domain=domain, range=list(colours.values())), legend=legend
    )
    ticks = sorted({line["tokens"] for line in lines})
    scale = alt.Scale(type="log", nice=False, padding=16)
    x = alt.X("tokens:Q", scale=scale, title="tokens", axis=alt.Axis(format="~s", values=ticks, labelOverlap="greedy"))
    y = alt.Y("cost:Q", scale=scale, title=unit, axis=alt.Axis(format="~g", labelOverlap="greedy"))
    base = alt.Chart(alt.Data(values=lines)).encode(x=x, y=y, color=colour)
    drawn = base.mark_line(strokeWidth=2).encode(
        strokeDash=alt.StrokeDash(
            "composition:N", scale=alt.Scale(domain=domain, range=list(dashes.values())), legend=None
        )
    ) + base.mark_point(filled=True, size=55, opacity=1).encode(
        shape=alt.Shape("composition:N", sort=domain, scale=alt.Scale(domain=domain, range=list(marks.values())))
    )
    if crossings:
        at = alt.Chart(alt.Data(values=crossings)).encode(x=x, y=y, color=colour)
        drawn = drawn + at.mark_point(shape="circle", size=260, strokeWidth=2, filled=False, opacity=1)
        text = {"dy": -20, "fontSize": 12, "fontWeight": "bold"}
        # on a white rim, so that it can be read on top of a line
        rim = at.mark_text(**text, stroke="white", strokeWidth=4, strokeJoin="round")
        drawn = drawn + rim.encode(text="text:N") + at.mark_text(**text).encode(text="text:N")
    return drawn.properties(width=380, height=330, title=TITLES[name])


def _short(length: float) -> str:
    """Two digits: 3.2k, 320k."""
    rounded = round(length, 1 - math.floor(math.log10(length)))
    return f"{rounded / 1e6:g}M" if rounded >= 1e6 else f"{rounded / 1e3:g}k" if rounded >= 1e3 else f"{rounded:g}"
