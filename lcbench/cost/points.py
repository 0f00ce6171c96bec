"""Measured points and the file they are kept in: each is written as soon as it is there.

    outputs/cost/<compositions>-<8 hex>/
      cost.json       the points, then what follows from them
      cost.csv        a row a point
      time.svg, time.png, memory.svg, memory.png

The hex digits stand for what is measured and how, lengths apart: the same command again, with other lengths too, finds
the points and measures what is missing. Points of another machine, of other packages or of other code do not count.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from lcbench.cost.step import Pass, Work
from lcbench.engine.machine import facts_of_machine
from lcbench.results.record import write_text
from lcbench.schema import locate

#: facts that points of one file must have in common
DECIDING = ("machine/processor", "machine/cores", "machine/device", "machine/accelerator", "versions/torch", "code")


@dataclass
class Point:
    """One pass of one composition at one length.

    Args:
        label: the composition's.
        identity: of its ``Work``.
        pass_: forward or training.
        length: tokens.
        step_seconds: of the single step whose memory was measured, the first of its process.
        peak_bytes: what that step added to the process's peak; None where the system does not say.
        seconds: of each round; empty until they were measured.
        processor_share: processor time in a share of wall time meanwhile; below 1 where others were running.
        operations: by shapes; None where they cannot be told.
        predicted_bytes: the peak by shapes.
        exact: whether both were counted, or follow from counts without any rest.
        state_bytes: what a layer or network carries on after so many tokens.
    """

    label: str
    identity: str
    pass_: Pass
    length: int
    step_seconds: float
    peak_bytes: int | None
    seconds: list[float] = field(default_factory=list)
    processor_share: float = 1.0
    operations: float | None = None
    predicted_bytes: float | None = None
    exact: bool = True
    state_bytes: int | None = None

    @property
    def typical_seconds(self) -> float:
        """The median of the rounds; nan before any."""
        return median(self.seconds) if self.seconds else float("nan")


class Store:
    """The file of points.

    Args:
        path: the folder.
        facts: of the machine and the code, flat.
        fresh: whether to forget what is there.
    """

    def __init__(self, path: Path, facts: dict[str, Any], fresh: bool = False) -> None:
        self.path, self.facts = path, facts
        self.file = path / "cost.json"
        self.points: dict[tuple[str, str, int], Point] = {}
        #: why points that were there do not count; empty if they do, or if there were none
        self.forgotten = ""
        if not fresh:
            self._read()

    def _read(self) -> None:
        try:
            found = json.loads(self.file.read_text())
            points = [Point(**row) for row in found["points"]]
            before = found["facts"]
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            self.forgotten = f"{self.file} cannot be read"
            return
        other = [name for name in DECIDING if before.get(name) != self.facts.get(name)]
        if other:
            self.forgotten = (
                f"points measured earlier have another {' and '.join(name.split('/')[-1] for name in other)}"
            )
            return
        self.points = {(point.identity, point.pass_, point.length): point for point in points}

    def get(self, work: Work, name: Pass, length: int) -> Point | None:
        """A point, if it is there."""
        return self.points.get((work.identity, name, length))

    def put(self, points: Iterable[Point], **rest: Any) -> None:
        """Keep points, and write the file with whatever else is known."""
        for point in points:
            self.points[point.identity, point.pass_, point.length] = point
        rows = [asdict(point) for point in self.points.values()]
        write_text(self.file, json.dumps({"facts": self.facts, **rest, "points": rows}, indent=1) + "\n")


def facts(works: Iterable[Work]) -> dict[str, Any]:
    """The machine, the packages and the code: digests of lcbench's sources and of those of a user's own classes."""
    found = facts_of_machine(next(iter(works)).device)
    package = Path(inspect.getfile(Store)).parents[1]
    files = set(package.rglob("*.py"))
    for work in works:
        for node in (work.attention, work.position, work.model):
            if node and "_target_" in node:
                files.add(Path(inspect.getfile(locate(node["_target_"], "_target_"))))
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return found | {"code": digest.hexdigest()[:8]}
