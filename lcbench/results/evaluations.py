"""What a run was scored on after its training: the records beside its own, read and shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import NoneType
from typing import Any

from rich.console import Console

from lcbench.results.table import counts_table, score_table, show_grids

FOLDER = "evaluations"


class UnreadableEvaluationError(Exception):
    """Why an evaluation's record cannot be used."""


def paths_of(folder: str | Path) -> list[str]:
    """The records of a run's evaluations, sorted by name."""
    place = os.path.join(folder, FOLDER)  # noqa: PTH118 thousands of runs are compared
    names = os.listdir(place) if os.path.isdir(place) else []  # noqa: PTH112, PTH208
    return [os.path.join(place, name) for name in sorted(names) if name.endswith(".json") and name[0] != "."]  # noqa: PTH118


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """The record of an evaluation.

    Raises:
        UnreadableEvaluationError: if it is none.
    """
    try:
        record = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableEvaluationError(f"it cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(record, dict) or not isinstance(record.get("evaluated/step"), int):
        raise UnreadableEvaluationError("it is no record of an evaluation: it has no evaluated/step")
    for name, value in record.items():
        if name.startswith("scores/") and type(value) not in (float, int, NoneType):
            raise UnreadableEvaluationError(f"it is no record of an evaluation: {name} is not a number")
    return record


def further_scores(own: dict[str, Any], evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of sets that a run itself was not scored on, of the weights that it was scored with.

    Of several evaluations of one set, that which counted most.

    Args:
        own: the run's record.
        evaluations: of the run.
    """
    weights = own.get("evaluated/step", own.get("train/steps"))
    taken = {key.split("/")[1] for key in own if key.startswith("scores/")}
    counted: dict[str, int] = {}
    found: dict[str, dict[str, Any]] = {}
    for record in evaluations:
        if record["evaluated/step"] != weights:
            continue
        sets: dict[str, dict[str, Any]] = {}
        for key, value in record.items():
            if key.startswith("scores/") and (name := key.split("/")[1]) not in taken:
                sets.setdefault(name, {})[key] = value
        for name, scores in sets.items():
            n = scores.get(f"scores/{name}/{own['task/headline']}_n") or 0
            if n > counted.get(name, -1):
                counted[name], found[name] = n, scores
    return {key: value for scores in found.values() for key, value in scores.items()}


def show_evaluation(console: Console, path: Path, record: dict[str, Any]) -> None:
    """An evaluation's scores, on the terminal."""
    console.print(f"\nevaluation {path.stem}: {record.get('evaluated/checkpoint')} weights, ", end="")
    console.print(f"of step {record['evaluated/step']:,}", soft_wrap=True)
    if record.get("status") != "completed":
        console.print(f"{record.get('status')}: {record.get('error') or 'not all sets are scored'}", soft_wrap=True)
    if any(key.startswith("scores/") for key in record):
        console.print(score_table(record))
        if (counts := counts_table(record)) is not None:
            console.print(counts)
        show_grids(console, record)


def show_evaluations(console: Console, folder: Path) -> None:
    """All evaluations of a run."""
    for path in paths_of(folder):
        try:
            show_evaluation(console, Path(path), read_evaluation(path))
        except UnreadableEvaluationError as error:
            console.print(f"\nskipped {path}: {error}", soft_wrap=True)
