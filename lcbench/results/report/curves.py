"""Learning curves, a configuration's seeds together, and thinned: a thousand runs have 10^5 rows."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from lcbench.results.runs import Run

#: points that a curve is thinned to
POINTS = 50

#: columns of metrics.csv that are drawn
QUANTITIES = ("loss", "evaluation_error")


@dataclass(frozen=True)
class Point:
    """One piece of a configuration's curve.

    Args:
        step: the last step of the piece.
        quantity: ``loss`` or ``evaluation_error``.
        mean: over seeds, of each seed's mean over the piece.
        low, high: the lowest and highest seed.
    """

    step: int
    quantity: str
    mean: float
    low: float
    high: float


def curves_of(runs: Sequence[Run]) -> list[Point]:
    """The curves of one configuration's runs; a run without readable curves adds nothing."""
    read = [found for run in runs if (found := _read(Path(run.folder)))]
    longest = max((steps[-1] for steps, _ in read), default=0)
    points = []
    for quantity in QUANTITIES:
        pieces: dict[int, list[float]] = {}
        for steps, columns in read:
            for piece, values in _cut(steps, columns[quantity], longest).items():
                pieces.setdefault(piece, []).append(fmean(values))
        points += [
            Point(math.ceil((piece + 1) * longest / POINTS), quantity, fmean(seeds), min(seeds), max(seeds))
            for piece, seeds in sorted(pieces.items())
        ]
    return points


def _cut(steps: Sequence[int], values: Sequence[float], longest: int) -> dict[int, list[float]]:
    """Finite values by the piece of ``[0, longest]`` that their step is in."""
    pieces: dict[int, list[float]] = {}
    for step, value in zip(steps, values, strict=True):
        if math.isfinite(value):
            pieces.setdefault(max(0, (step * POINTS - 1) // longest), []).append(value)
    return pieces


def _read(folder: Path) -> tuple[list[int], dict[str, list[float]]] | None:
    """Steps and columns of a run's metrics.csv; None where there are none.

    A line that a process was killed in the middle of is left out.
    """
    steps: list[int] = []
    columns: dict[str, list[float]] = {quantity: [] for quantity in QUANTITIES}
    try:
        with open(os.path.join(folder, "metrics.csv"), newline="") as file:  # noqa: PTH118, PTH123 thousands are read
            lines = csv.reader(file)
            places = {name: place for place, name in enumerate(next(lines, []))}
            if "step" not in places or not any(quantity in places for quantity in QUANTITIES):
                return None
            for line in lines:
                try:
                    step = int(line[places["step"]])
                    values = {q: float(line[places[q]] or "nan") for q in QUANTITIES if q in places}
                except (ValueError, IndexError):
                    continue
                steps.append(step)
                for quantity in QUANTITIES:
                    columns[quantity].append(values.get(quantity, math.nan))
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    return (steps, columns) if steps and max(steps) > 0 else None
