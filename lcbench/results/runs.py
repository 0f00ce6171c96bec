"""Finished and unfinished runs, read for comparison: thousands in a second, and no bad one costs the others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

from lcbench.errors import ConfigurationError
from lcbench.results.evaluations import (
    FOLDER,
    UnreadableEvaluationError,
    further_scores,
    paths_of,
    read_evaluation,
)


@dataclass(frozen=True)
class Run:
    """One run's record.

    Args:
        folder: where it lies.
        experiment: what it belongs to.
        status: completed, failed, interrupted or running.
        seed: of initialisation, data and dropout.
        config: what it computes, by dotted key.
        record: result.json, with the scores of further evaluations.
        evaluated: evaluation sets whose scores come from evaluations after the run.
    """

    folder: str
    experiment: str
    status: str
    seed: int
    config: dict[str, Any]
    record: dict[str, Any]
    evaluated: frozenset[str] = frozenset()

    @property
    def completed(self) -> bool:
        """Whether it has been trained and scored to the end."""
        return self.status == "completed"

    def scores(self) -> tuple[str, ...]:
        """Its scores as ``evaluation set/metric``, in the record's order."""
        return _scores(tuple(self.record))


@lru_cache(maxsize=64)
def _scores(keys: tuple[str, ...]) -> tuple[str, ...]:
    known = frozenset(keys)
    return tuple(key.removeprefix("scores/") for key in keys if key.startswith("scores/") and f"{key}_n" in known)


@dataclass(frozen=True)
class Unreadable:
    """A run's folder that cannot be read, and why."""

    folder: str
    reason: str


def read_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[Unreadable]]:
    """All runs at or below ``paths``, sorted by folder, and the folders that could not be read.

    Raises:
        ConfigurationError: if a path holds no run.
    """
    runs: dict[str, Run] = {}
    unreadable: dict[str, Unreadable] = {}
    for path in paths:
        folders = dict(_folders(path))
        if not folders:
            missing = "there is no such folder" if not Path(path).exists() else "no result.json at or below it"
            raise ConfigurationError(f"{path} is no run and holds none: {missing}.")
        for folder, has_evaluations in folders.items():
            # the same run may be reached by two of the paths
            key = os.path.realpath(folder)
            try:
                runs[key] = _read(folder)
                if has_evaluations and runs[key].completed:
                    runs[key], bad = _with_evaluations(runs[key])
                    unreadable |= {os.path.realpath(one.folder): one for one in bad}
            except _UnreadableError as error:
                unreadable[key] = Unreadable(folder, str(error))
    return [runs[key] for key in sorted(runs)], [unreadable[key] for key in sorted(unreadable)]


def _folders(path: str | Path) -> Iterator[tuple[str, bool]]:
    """Folders of runs (with a record, or with the other files that every run begins with), and whether they hold
    evaluations."""
    for folder, below, files in os.walk(path):
        if "result.json" in files or {"config.yaml", "run.log"} <= set(files):
            yield folder, FOLDER in below
            below.clear()


def _with_evaluations(run: Run) -> tuple[Run, list[Unreadable]]:
    evaluations, bad = [], []
    for path in paths_of(run.folder):
        try:
            evaluations.append(read_evaluation(path))
        except UnreadableEvaluationError as error:
            bad.append(Unreadable(path, str(error)))
    further = further_scores(run.record, evaluations)
    sets = frozenset(key.split("/")[1] for key in further)
    return replace(run, record=run.record | further, evaluated=sets), bad


class _UnreadableError(Exception):
    """Why a record cannot be compared."""


def _read(folder: str) -> Run:
    try:
        # opened without pathlib, which takes a third of the time of all reading
        with open(os.path.join(folder, "result.json"), "rb") as file:  # noqa: PTH118, PTH123
            record = json.loads(file.read())
    except FileNotFoundError:
        raise _UnreadableError("it has no result.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _UnreadableError(f"result.json cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(record, dict):
        raise _UnreadableError("result.json is no record: not a table of keys and values")
    for key, kind in {"status": str, "experiment": str, "seed": int, "task/headline": str}.items():
        if not isinstance(record.get(key), kind):
            raise _UnreadableError(f"result.json is no complete record: it has no {key}")
    config = {}
    for name, value in record.items():
        if name.startswith("config/"):
            config[name[len("config/") :]] = value
        elif name.startswith(("scores/", "cost/")) and type(value) not in (float, int, NoneType):
            raise _UnreadableError(f"result.json is no record: {name} is not a number")
    config = config or _config_of(folder)
    # a run from the beginning differs from one that continues another
    config.setdefault("continues", None)
    if "task._target_" not in config:
        raise _UnreadableError("its config names no task")
    return Run(folder, record["experiment"], record["status"], record["seed"], config, record)


def _config_of(folder: str) -> dict[str, Any]:
    """From config.yaml, for records written before they held the config themselves."""
    import yaml

    try:
        with (Path(folder) / "config.yaml").open("rb") as file:
            config = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise _UnreadableError("it has no config.yaml") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _UnreadableError(f"config.yaml cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise _UnreadableError("config.yaml is no config: not a table of keys and values")
    return dotted(config)


def dotted(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config by dotted key: ``{"task": {"length": 64}}`` is ``{"task.length": 64}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
