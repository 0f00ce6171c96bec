"""The tables a run ends with."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lcbench.results.grid import grid_table, grids_of
from lcbench.results.metrics import is_share, written
from lcbench.results.record import Score, scores_of
from lcbench.results.sizes import human_bytes


def run_table(result: dict[str, Any]) -> Group:
    """Scores per evaluation set, then the cost."""
    parts: list[Any] = [score_table(result), Text("")]
    if (counts := counts_table(result)) is not None:
        parts += [counts, Text("")]
    parts.append(cost_table(result))
    if any(key.startswith("data/") for key in result):
        parts += [Text(""), data_table(result)]
    return Group(*parts)


def score_table(result: dict[str, Any]) -> Table:
    """Scores per evaluation set.

    Metrics split by a fact (``error/distance_4_7``) stay in the record.
    """
    scores = [score for score in scores_of(result) if "/" not in score.metric]
    headline = result["task/headline"]
    metrics = sorted({score.metric for score in scores}, key=lambda metric: (metric != headline, metric))
    sets = list(dict.fromkeys(score.evaluation_set for score in scores))
    found = {(score.evaluation_set, score.metric): score for score in scores}
    columns: list[tuple[str, str, Callable[[Score], str]]] = []
    for metric in metrics:
        share = is_share(f"set/{metric}")
        title = metric.replace("_", " ")
        if metric == headline and share:
            columns.append((metric, title, lambda score: _percent(score.value)))
            columns.append((metric, "95 % interval", lambda s: f"{100 * s.low:.2f} to {_percent(s.high)}"))
            columns.append((metric, "wrong / counted", lambda s: f"{round(s.value * s.n):,} / {s.n:,}"))
        elif metric == headline:
            columns.append((metric, title.replace(" ", "\n"), lambda score: f"{score.value:.4g}"))
            columns.append((metric, "95 % interval", _interval))
            columns.append((metric, "counted", lambda s: f"{s.n:,}"))
        elif share:
            columns.append((metric, title, lambda score: _percent(score.value)))
        else:
            # what such a mean is over differs from one to the next: tokens, words
            lines = title.replace(" ", "\n")
            columns.append((metric, f"{lines}\ncounted", lambda s: f"{s.value:.4g}\n{s.n:,}"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    shares = all(is_share(f"set/{metric}") for metric in metrics)
    # names with a protocol, a stride and a length are long: they are broken rather than numbers
    table.add_column("evaluation set", no_wrap=shares, overflow="fold")
    for metric, title, _ in columns:
        table.add_column(title, justify="right", no_wrap=not shares or (metric == headline and title != metric))
    for name in sets:
        cells = [show(found[name, metric]) if (name, metric) in found else "" for metric, _, show in columns]
        table.add_row(name, *cells)
    chances = {metric: result.get(f"chance/{metric}") for metric in metrics}
    chance = [
        written(metric, value)
        if title.removesuffix("\ncounted").replace("\n", " ") == metric.replace("_", " ")
        and (value := chances[metric]) is not None
        else ""
        for metric, title, _ in columns
    ]
    table.add_row("chance", *chance, style="dim")
    return table


def _interval(score: Score) -> str:
    return "unknown" if math.isnan(score.low) else f"{score.low:.3g} to {score.high:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def counts_table(result: dict[str, Any]) -> Table | None:
    """What each evaluation set had beside what was counted, and what of it was left out; None where no set says."""
    found: dict[str, dict[str, int]] = {}
    for key, value in result.items():
        if key.startswith("counts/"):
            _, evaluation_set, name = key.split("/")
            found.setdefault(evaluation_set, {})[name] = value
    if not found:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("evaluation set", no_wrap=True)
    names = list(dict.fromkeys(name for counts in found.values() for name in counts))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for evaluation_set, counts in found.items():
        table.add_row(evaluation_set, *(f"{counts[name]:,}" if name in counts else "" for name in names))
    return table


def data_table(result: dict[str, Any]) -> Table:
    """What the examples were drawn from, and what of it was left out."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for key, value in result.items():
        if key.startswith("data/") and value:
            table.add_row(
                key.removeprefix("data/").replace("_", " "), f"{value:,}" if isinstance(value, int) else value
            )
    return table


def cost_table(result: dict[str, Any]) -> Table:
    """What the run took."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    rows: dict[str, tuple[str, Callable[[Any], str]]] = {
        "parameters": ("cost/parameters", lambda v: f"{v:,}"),
        "training tokens": ("cost/train_tokens", lambda v: f"{v:,}"),
        "training operations": ("cost/train_flops", lambda v: f"{v:.3g} FLOP"),
        "speed": ("cost/tokens_per_second", lambda v: f"{v:,.0f} tokens/s"),
        "peak memory": ("cost/peak_memory_bytes", human_bytes),
        "state after an example": ("cost/state_bytes", human_bytes),
        "wall time": ("cost/wall_seconds", lambda v: f"{v:.1f} s"),
    }
    for words, (key, show) in rows.items():
        if result.get(key) is not None:
            table.add_row(words, show(result[key]))
    return table


def show_grids(console: Console, result: dict[str, Any]) -> None:
    """Accuracy by length and depth, where a record has it."""
    for grid in grids_of(result):
        console.print()
        console.print(grid_table(grid))


def show_run(console: Console, result: dict[str, Any], folder: Path) -> None:
    """The end of a run, on the terminal."""
    console.print()
    if result["status"] == "completed":
        console.print(run_table(result))
        show_grids(console, result)
    else:
        console.print(f"{result['status']}: {result.get('error') or 'no scores yet'}", soft_wrap=True)
    console.print()
    if "continues/run" in result:
        console.print(f"continues   {result['continues/run']}, from step {result['continues/step']}", soft_wrap=True)
    console.print(f"run folder  {folder}", soft_wrap=True)
