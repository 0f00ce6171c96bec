"""The figures, in Vega-Lite: one unit a kind, which the page fills in the browser and a file is filled with here.

Data come by name (``summary``, ``seeds``, ``marks``). Every line has the ``label`` and the ``colour`` of its
configuration; colours and numbers are given, so that the page and the file show the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lcbench.results.pictures import altair
from lcbench.results.report.content import Datum

#: told apart by the colour-blind (Okabe and Ito), in an order in which neighbours differ most; on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7B3294", "#6B6B6B")

FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"


def theme(ink: str, soft: str, line: str, background: str | None) -> dict[str, Any]:
    """Vega-Lite's config.

    Args:
        ink, soft, line: colours of titles, of axes' words, and of grids; any CSS colour.
        background: None: transparent.
    """
    return {
        "background": background,
        "font": FONT,
        "padding": 4,
        "view": {"stroke": None},
        "title": {"color": ink, "anchor": "start", "fontSize": 13, "fontWeight": 600, "offset": 8},
        "axis": {
            "labelColor": soft,
            "titleColor": soft,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 11,
            "gridColor": line,
            "domainColor": line,
            "tickColor": line,
            "labelLimit": 190,
            "tickCount": 5,
            "labelOverlap": "greedy",
        },
        "legend": {"labelColor": ink, "labelFontSize": 12, "title": None, "orient": "bottom", "symbolOpacity": 1},
    }


@dataclass(frozen=True)
class Means:
    """What a unit is drawn with, and what differs between a page and a file.

    Args:
        alt: Altair.
        colour: the encoding of a configuration's colour.
        soft: the colour of what guessing scores.
        share: Vega's expression for whether numbers are written in percent.
        top: where the axis of scores ends.
        ticks: lengths that the axis of lengths names.
        params: what the browser sets.
    """

    alt: Any
    colour: Any
    soft: str
    share: str
    top: Any
    ticks: Any
    params: tuple[Any, ...] = ()

    @classmethod
    def of_page(cls, alt: Any) -> Means:
        """Everything that differs is set in the browser."""
        params = {"share": True, "top": 1, "ticks": []}
        return cls(
            alt,
            colour=alt.Color("colour:N", scale=None),
            soft="var(--soft)",
            share="share",
            top=alt.ExprRef("top"),
            ticks=alt.ExprRef("ticks"),
            params=tuple(alt.param(name=name, value=value) for name, value in params.items()),
        )

    @classmethod
    def of_file(
        cls, alt: Any, colours: Mapping[str, str], share: bool, top: float, ticks: Sequence[int] = ()
    ) -> Means:
        """``colours`` by configuration; they become the legend."""
        scale = alt.Scale(domain=list(colours), range=list(colours.values()))
        colour = alt.Color("label:N", scale=scale)
        return cls(alt, colour, "#59636e", "true" if share else "false", top, list(ticks))

    def value(self, field: str, **options: Any) -> dict[str, Any]:
        """A score's axis: shares in percent."""
        number = "format(datum.value, '~g')"
        text = f"{self.share} ? format(datum.value * 100, '~g') + ' %' : {number}"
        axis = self.alt.Axis(labelExpr=text, title=None)
        return {"field": field, "type": "quantitative", "axis": axis, **options}

    def mean(self) -> Any:
        """Of means, upwards; the axis begins at zero."""
        return self.alt.Y(**self.value("mean", scale=self.alt.Scale(zero=True, domainMax=self.top)))

    def low(self) -> Any:
        """Of an interval's lower end, on the same axis."""
        return self.alt.Y(**self.value("low"))

    def tip(self) -> Any:
        """What the page says of a mark that is pointed at; a file says nothing."""
        return self.alt.Tooltip("tip:N", title=" ") if self.params else self.alt.value(None)

    def chart(self, name: str) -> Any:
        """A chart of the data of that name."""
        return self.alt.Chart(self.alt.NamedData(name=name))

    def layers(self, *parts: Any) -> Any:
        """The parts on top of each other."""
        return self.alt.layer(*parts).add_params(*self.params)


def units(means: Means) -> dict[str, Any]:
    """A Vega-Lite chart by the name of its kind."""
    alt = means.alt
    log = alt.Scale(type="log", nice=False, padding=14)
    axis = alt.Axis(format="~s", labelOverlap="greedy", values=means.ticks)
    return {
        "scores": _scores(means),
        "lengths": _lines(means, alt.X("tokens:Q", title="tokens", scale=log, axis=axis)),
        "groups": _lines(means, _in_order(alt, "group", "first")),
        "keys": _lines(means, _in_order(alt, "value", "place")),
        "curves": _curves(means),
        "costs": _costs(means),
        "maps": _maps(means),
    }


def _in_order(alt: Any, field: str, order: str) -> Any:
    sort = alt.EncodingSortField(field=order, op="min")
    return alt.X(f"{field}:O", title=None, sort=sort, axis=alt.Axis(labelAngle=0, labelOverlap="greedy"))


def _scores(means: Means) -> Any:
    """A line a configuration: seeds as points, the interval as a bar, the mean as a tick, a paper's as a cross."""
    alt = means.alt
    axis = alt.Axis(labelFontSize=12, labelPadding=10, ticks=False, domain=False, grid=True)
    y = alt.Y("label:N", sort=alt.EncodingSortField(field="row", op="min"), title=None, axis=axis)
    x = alt.X(**means.value("value", scale=alt.Scale(nice=True, zero=True)))
    common = {"y": y, "color": means.colour, "tooltip": means.tip()}
    interval = means.chart("summary").mark_rule(strokeWidth=7, opacity=0.28)
    tick = means.chart("summary").mark_tick(thickness=3, size=20)
    paper = means.chart("paper").mark_point(shape="cross", size=70, angle=45, filled=True, opacity=0.9)
    return means.layers(
        means.chart("chance").mark_rule(strokeDash=[3, 3], opacity=0.7, color=means.soft).encode(x=x),
        interval.encode(x=alt.X(**means.value("low")), x2="high", **common),
        tick.encode(x=alt.X(**means.value("mean")), **common),
        means.chart("seeds").mark_circle(size=34, opacity=0.75).encode(x=x, **common),
        paper.encode(x=x, **common),
    ).properties(height=alt.Step(24), width=300)


def _lines(means: Means, x: Any) -> Any:
    """A line a configuration, with intervals."""
    base = means.chart("lines").encode(x=x, color=means.colour, tooltip=means.tip())
    return means.layers(
        base.mark_rule(strokeWidth=5, opacity=0.22, clip=True).encode(y=means.low(), y2="high"),
        base.mark_line(strokeWidth=2).encode(y=means.mean(), detail="label:N"),
        base.mark_circle(size=42, opacity=1).encode(y=means.mean()),
    ).properties(height=220, width=300)


def _curves(means: Means) -> Any:
    """A line a configuration, with the range of its seeds."""
    x = means.alt.X("step:Q", title="steps", axis=means.alt.Axis(format="~s"))
    base = means.chart("lines").encode(x=x, color=means.colour, detail="label:N")
    return means.layers(
        base.mark_area(opacity=0.14, clip=True).encode(y=means.low(), y2="high"),
        base.mark_line(strokeWidth=2).encode(y=means.mean(), tooltip=means.tip()),
    ).properties(height=240, width=300)


def _costs(means: Means) -> Any:
    """Cost against score, a point a configuration, named."""
    alt = means.alt
    scale = alt.Scale(type="log", nice=False, padding=40)
    x = alt.X("cost:Q", title=None, scale=scale, axis=alt.Axis(format="~s", labelOverlap="greedy", tickCount=4))
    base = means.chart("points").encode(x=x, color=means.colour, tooltip=means.tip())
    mean = alt.Y(**means.value("mean", scale=alt.Scale(zero=True)))
    return means.layers(
        base.mark_rule(strokeWidth=5, opacity=0.22).encode(y=means.low(), y2="high"),
        base.mark_circle(size=70, opacity=1).encode(y=mean),
        base.mark_text(dx=8, align="left", fontSize=11).encode(y=mean, text="text:N"),
    ).properties(height=240, width=300)


def _maps(means: Means) -> Any:
    """A line a layer and head, a cell a key: the stronger the colour, the more."""
    alt = means.alt
    word = "slice(datum.value, indexof(datum.value, ' ') + 1)"
    x = alt.X("key:O", title=None, sort=alt.EncodingSortField(field="place", op="min"))
    x = x.axis(labelExpr=word, labelAngle=0, labelOverlap="greedy", labelLimit=40, ticks=False, domain=False)
    y = alt.Y("head:O", title=None, sort=alt.EncodingSortField(field="order", op="min"))
    opacity = alt.Opacity("number:Q", scale=alt.Scale(zero=True, range=[0.04, 1]), legend=None)
    cells = means.chart("cells").mark_rect(stroke=None)
    cells = cells.encode(
        x=x, y=y.axis(ticks=False, domain=False), color=means.colour, opacity=opacity, tooltip=means.tip()
    )
    return means.layers(cells).properties(height=alt.Step(20), width=300)


@dataclass(frozen=True)
class Panel:
    """One picture of a file.

    Args:
        kind: of unit.
        title: above it.
        data: by name.
        ticks: lengths to name.
    """

    kind: str
    title: str
    data: Mapping[str, Sequence[Datum]]
    ticks: Sequence[int] = ()


def svg(panels: Sequence[Panel], colours: Mapping[str, str], share: bool, title: str, subtitle: str) -> str:
    """The panels as an SVG picture, two beside each other, on white, with a legend.

    Args:
        colours: by configuration.
        share: whether the scores are written in percent.

    Raises:
        ConfigurationError: if what draws it is not installed.
    """
    alt = altair("report", "report")
    import vl_convert

    datasets: dict[str, Sequence[Datum]] = {}
    drawn = []
    for place, panel in enumerate(panels):
        means = Means.of_file(alt, colours, share, top_of(panel.data.get("lines", [])), panel.ticks)
        unit = units(means)[panel.kind].properties(title=panel.title, width=340).to_dict()
        unit = {key: value for key, value in unit.items() if key not in ("config", "$schema")}
        # what all layers draw from stands above them
        for part in [part for part in (unit, *unit["layer"]) if "data" in part]:
            name = part["data"]["name"]
            datasets[f"{name}_{place}"] = list(panel.data.get(name, []))
            part["data"] = {"name": f"{name}_{place}"}
        drawn.append(unit)
    spec = {
        "$schema": alt.SCHEMA_URL,
        "title": {"text": title, "subtitle": subtitle, "anchor": "start", "fontSize": 17, "subtitleFontSize": 12},
        "concat": drawn,
        "columns": 2,
        "spacing": {"row": 28, "column": 36},
        "datasets": datasets,
        "config": theme("#1b1f24", "#59636e", "#e3e6ea", background="white"),
    }
    return vl_convert.vegalite_to_svg(spec)


def top_of(lines: Sequence[Datum]) -> float:
    """Where the axis ends: above all means, but not above the widest interval, which a group of few outcomes has."""
    means = [line["mean"] for line in lines]
    highs = [high if math.isfinite(high := line["high"]) else line["mean"] for line in lines]
    if not lines or max(highs) <= 0:
        return 1.0
    return min(max(highs), 1.3 * max(means)) if max(means) > 0 else max(highs)
