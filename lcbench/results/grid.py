"""Accuracy by length and depth: the grid that retrieval tasks are scored on, as a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from lcbench.results.metrics import more_is_better
from lcbench.results.pictures import altair, save
from lcbench.results.record import Score, scores_of
from lcbench.results.sizes import human_bytes
from lcbench.task.cell import parse_cell


@dataclass(frozen=True)
class Grid:
    """The cells of a record that have both a length and a depth.

    Args:
        base: the distribution's name; empty for that of training.
        scores: by length in tokens and depth in percent.
        costs: of streaming, by length: the means over depths, the most for memory; empty where nothing was streamed.
    """

    base: str
    scores: dict[tuple[int, int], Score]
    costs: dict[int, dict[str, float]]

    @property
    def lengths(self) -> list[int]:
        return sorted({length for length, _ in self.scores})

    @property
    def depths(self) -> list[int]:
        return sorted({depth for _, depth in self.scores})

    def accuracy(self, length: int, depth: int) -> tuple[float, float, float] | None:
        """Share of right answers and its 95 % interval."""
        score = self.scores.get((length, depth))
        if score is None:
            return None
        if more_is_better(f"{score.evaluation_set}/{score.metric}"):
            return score.value, score.low, score.high
        return 1 - score.value, 1 - score.high, 1 - score.low


def grids_of(record: Mapping[str, Any]) -> list[Grid]:
    """The grids of a run's or an evaluation's record; none where no set has a depth."""
    training_length = record.get("config/task.length")
    scores: dict[str, dict[tuple[int, int], Score]] = {}
    costs: dict[str, dict[int, list[dict[str, float]]]] = {}
    for score in scores_of(dict(record)):
        cell = parse_cell(score.evaluation_set, training_length)
        if score.metric != record["task/headline"] or cell is None or cell.length is None or cell.depth is None:
            continue
        scores.setdefault(cell.base, {})[cell.length, cell.depth] = score
        prefix = f"streaming/{score.evaluation_set}/"
        cost = {key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)}
        if cost:
            costs.setdefault(cell.base, {}).setdefault(cell.length, []).append(cost)
    return [
        Grid(base, cells, {length: _together(found) for length, found in costs.get(base, {}).items()})
        for base, cells in scores.items()
    ]


def _together(costs: list[dict[str, float]]) -> dict[str, float]:
    """Memory is the most of all, time the mean."""
    return {
        name: max(cost[name] for cost in costs)
        if name.endswith("_bytes")
        else sum(cost[name] for cost in costs) / len(costs)
        for name in costs[0]
    }


def grid_table(grid: Grid) -> Table:
    """A row a length, a column a depth: accuracy, its 95 % interval and how many were asked."""
    base = f", {grid.base}" if grid.base else ""
    title = f"accuracy by length and depth{base}, 95 % intervals"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    table.add_column("tokens", justify="right", no_wrap=True)
    for depth in grid.depths:
        table.add_column(f"depth {depth} %", justify="right", no_wrap=True)
    if grid.costs:
        for name in ("prefill", "tokens/s", "state", "peak memory"):
            table.add_column(name, justify="right", no_wrap=True)
    for length in grid.lengths:
        cells = []
        for depth in grid.depths:
            found = grid.accuracy(length, depth)
            if found is None:
                cells.append("")
                continue
            value, low, high = (100 * share for share in found)
            cells.append(f"{value:.1f} %\n{low:.1f} to {high:.1f}\nn {grid.scores[length, depth].n:,}")
        cost = grid.costs.get(length)
        if grid.costs:
            cells += (
                [""] * 4
                if cost is None
                else [
                    f"{cost['seconds']:.2f} s",
                    f"{cost['tokens_per_second']:,.0f}",
                    human_bytes(cost["state_bytes"]),
                    human_bytes(cost["peak_memory_bytes"]),
                ]
            )
        table.add_row(f"{length:,}", *cells)
    return table


def grid_figure(grid: Grid, path: Path) -> None:
    """Write a heat map of the grid, as SVG or PNG by the path's ending.

    Raises:
        ConfigurationError: if the packages that draw it are not installed.
    """
    alt = altair(f"figure {path.name}")
    rows = []
    for length in grid.lengths:
        for depth in grid.depths:
            found = grid.accuracy(length, depth)
            if found is not None:
                n = grid.scores[length, depth].n
                text = f"{100 * found[0]:.0f} %"
                rows.append({"length": f"{length:,}", "depth": depth, "accuracy": found[0], "text": text, "n": n})
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "length:O", sort=[f"{length:,}" for length in grid.lengths], title="tokens", axis=alt.Axis(labelAngle=0)
        ),
        y=alt.Y("depth:O", title="depth of the fact (%)"),
    )
    colour = alt.Color(
        "accuracy:Q", scale=alt.Scale(domain=[0, 1], scheme="viridis"), legend=alt.Legend(format="%", title="accuracy")
    )
    text_colour = alt.condition("datum.accuracy > 0.6", alt.value("black"), alt.value("white"))
    counts = sorted({score.n for score in grid.scores.values()})
    asked = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    chart = (
        (base.mark_rect().encode(color=colour) + base.mark_text(fontSize=13).encode(text="text:N", color=text_colour))
        .properties(
            width=max(240, 90 * len(grid.lengths)),
            height=max(120, 60 * len(grid.depths)),
            title=alt.TitleParams("Accuracy by length and depth", subtitle=f"{asked} answers a cell"),
        )
        .configure(background="white")
    )
    save(chart, [path])
