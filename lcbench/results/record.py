"""A run's folder and its record.

    config.yaml        resolved, loadable by itself
    result.json        flat, group/name keys
    metrics.csv        the curves
    documents.csv      of a text, the loss of every document that was scored
    checkpoints/       last, the one before it, and best; first, where the run continues another one
    evaluations/       a record each: what the trained network was scored on afterwards
    run.log            what happened, with the traceback where the run failed

Whatever others read is written under another name first and then renamed: a reader sees the old file or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lcbench.errors import ConfigurationError

#: columns of metrics.csv
CURVES = ("step", "seconds", "tokens", "tokens_per_second", "learning_rate", "loss", "evaluation_error")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with written_whole(path) as file:
        file.write(text.encode())


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, that takes the place of ``path`` when it is left, and not at all where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 mkstemp's files are private, a record is not
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def hold(lock: Path, what: object) -> Iterator[None]:
    """Keep other processes from computing ``what``, until left or until this process ends.

    Raises:
        ConfigurationError: if another process holds the lock, or it cannot be written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+")
    except PermissionError as error:
        raise ConfigurationError(f"{error.filename} cannot be written: {error.strerror}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _taken(file, what) from None
        with suppress(OSError):  # on a full disk the lock holds without a name
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())
        yield


def _taken(lock: IO[str], what: object) -> ConfigurationError:
    lock.seek(0)
    return ConfigurationError(f"{what} is being computed already, by process {lock.read().strip()}.")


@dataclass(frozen=True)
class Score:
    """One metric on one evaluation set: its value, 95 % interval and how many outcomes it counts."""

    evaluation_set: str
    metric: str
    value: float
    low: float
    high: float
    n: int


def scores_of(result: dict[str, Any]) -> list[Score]:
    """The scores in a record, in the record's order."""
    scores = []
    for key, value in result.items():
        parts = key.split("/")
        if parts[0] == "scores" and f"{key}_n" in result:
            low, high, n = (result[f"{key}_{part}"] for part in ("low", "high", "n"))
            scores.append(Score(parts[1], "/".join(parts[2:]), value, low, high, n))
    return scores


class RunFolder:
    """Where the parts of one run lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.result = path / "result.json"
        self.metrics = path / "metrics.csv"
        self.documents = path / "documents.csv"
        self.checkpoints = path / "checkpoints"
        self.evaluations = path / "evaluations"
        self.log = path / "run.log"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from computing the same run, until left or until this process ends.

        Raises:
            ConfigurationError: if another process holds it.
        """
        with hold(self.path / ".lock", self.path):
            self._remove_leftovers()
            yield

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep the run from being computed while others read it together; changes nothing in its folder.

        Raises:
            ConfigurationError: if a process is computing it.
        """
        lock = self.path / ".lock"
        if not lock.exists():
            yield
            return
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                raise _taken(file, self.path) from None
            yield

    def _remove_leftovers(self) -> None:
        """Half-written files of a process that was killed while writing."""
        for folder in (self.path, self.checkpoints):
            for path in folder.glob(".*.*"):
                path.unlink()

    def clear(self) -> None:
        """Remove everything but the lock."""
        for path in self.path.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def read_result(self) -> dict[str, Any]:
        """The record.

        Raises:
            ConfigurationError: if the folder is not that of a run.
        """
        try:
            return json.loads(self.result.read_text())
        except FileNotFoundError:
            raise self.no_run("result.json") from None
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{self.result} cannot be read: {error}.") from None

    def no_run(self, missing: str) -> ConfigurationError:
        """The error for a folder that lacks what every run has."""
        return ConfigurationError(
            f"{self.path} is no run: it has no {missing} (a run is a folder such as "
            "outputs/flip_flop/default-1a2b3c4d)."
        )

    def write_result(self, result: dict[str, Any]) -> None:
        """Write the record atomically."""
        write_text(self.result, json.dumps(result, indent=1) + "\n")


def read(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The records of all runs at or below ``paths``, each with its folder under ``folder``, sorted by folder.

    Raises:
        ConfigurationError: if a path holds no run.
    """
    records = {}
    for path in map(Path, paths):
        found = sorted(path.rglob("result.json")) if path.is_dir() else []
        if not found:
            raise ConfigurationError(f"{path} is no run and holds none: there is no result.json at or below it.")
        for file in found:
            records[str(file.parent)] = {"folder": str(file.parent), **RunFolder(file.parent).read_result()}
    return [records[folder] for folder in sorted(records)]
