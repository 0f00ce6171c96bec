"""What a person sees of a sweep while it works: a live table on a terminal, a line per start and end elsewhere."""

from __future__ import annotations

import csv
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lcbench.errors import ConfigurationError
from lcbench.results.metrics import written
from lcbench.results.record import CURVES, RunFolder, scores_of

if TYPE_CHECKING:
    from lcbench.sweep.jobs import Job

#: seconds between two drawings: a table drawn more often costs the jobs, and nobody reads faster
DRAW_EVERY = 1.0
#: how much of the end of metrics.csv a look reads
LAST_BYTES = 2**13
#: what a job is called that nothing tells from others
ONLY = "the only job"
#: lines that are not jobs: the titles, the counts, and one for what the terminal adds
OTHER_LINES = 3
#: letters for the time left or the beginning of a cause
NOTE = 14
TITLES = ("job", "status", "step", "error", "")
STYLES = {"done": "green", "failed": "red", "interrupted": "yellow", "waiting": "dim"}


class Board:
    """Progress of a sweep's jobs.

    Args:
        console: where.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live: Live | None = None
        self._drawn = 0.0
        # by a job's overrides, as its object may be another one at the next look
        self._status: dict[str, str] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._ended: dict[str, int] = {}
        self._errors: dict[str, str] = {}
        self._headlines: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.console.quiet:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def look(self, jobs: Sequence[Job]) -> None:
        """Show what has changed, the table now and then only."""
        changed = self._notice(jobs)
        for job in changed if self.live is None else ():
            self.console.print(self._line(job), markup=False, soft_wrap=True)
        if self.live is not None and (changed or time.monotonic() - self._drawn >= DRAW_EVERY):
            self._drawn = time.monotonic()
            self.live.update(self.table(jobs), refresh=True)

    def table(self, jobs: Sequence[Job], width: int = 0, height: int = 0) -> Group:
        """The jobs that fit ``height`` lines of ``width`` letters (the console's), and the counts of all."""
        self._notice(jobs)
        rows = [self._row(job) for job in self._shown(jobs, max(1, (height or self.console.height) - OTHER_LINES))]
        counts = Counter(job.status for job in jobs)
        words = [f"{counts[status]} {status}" for status in ("running", "waiting", "failed", "interrupted")]
        parts = [f"{counts['completed']} of {len(jobs)} done", *(w for w in words if not w.startswith("0 "))]
        counted = Text(", ".join(parts), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(_laid_out(rows, width or self.console.width), counted)

    def _notice(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that have begun or ended since the last look."""
        changed = []
        for job in jobs:
            key, before = _key(job), self._status.get(_key(job))
            if job.status == before:
                continue
            self._status[key] = job.status
            if job.status == "running":
                self._began[key] = (time.monotonic(), read_progress(job.folder)[0])
            elif job.status != "waiting":
                self._ended[key] = len(self._ended)
            # what had ended before the first look is no news
            if job.status == "running" or before is not None:
                changed.append(job)
        return changed

    def _line(self, job: Job) -> str:
        if job.status == "running":
            return f"started {title_of(job)}"
        said = self._said(job) if job.status == "completed" else first_line(job.error)
        now = time.monotonic()
        took = clock(now - self._began.get(_key(job), (now, 0))[0])
        return f"{job.status} {title_of(job)} after {took}: {said}"

    def _shown(self, jobs: Sequence[Job], room: int) -> list[Job]:
        """All, or those that run, then the latest that failed, then the latest that are done; in the sweep's order."""
        if len(jobs) <= room:
            return list(jobs)

        def urgency(job: Job) -> tuple[int, int]:
            ranks = {"running": 0, "failed": 1, "interrupted": 1, "completed": 2}
            return ranks.get(job.status, 3), -self._ended.get(_key(job), 0)

        kept = {id(job) for job in sorted(jobs, key=urgency)[:room] if job.status != "waiting"}
        return [job for job in jobs if id(job) in kept]

    def _row(self, job: Job) -> tuple[str, ...]:
        name = title_of(job)
        if job.status == "running":
            step, value = read_progress(job.folder)
            error = "" if value is None else _written(self._headline(job), value)
            return (name, "running", f"{step:,}/{job.steps:,}", error, self._time_left(job, step))
        if job.status == "waiting":
            return (name, "waiting", "", "", "")
        if job.status == "completed":
            return (name, "done", "", self._error(job), "")
        return (name, job.status, "", "", first_line(job.error))

    def _time_left(self, job: Job, step: int) -> str:
        began, first = self._began[_key(job)]
        if step >= job.steps > 0:
            return "scoring"
        if step <= first:
            return "starting"
        return f"{clock((time.monotonic() - began) / (step - first) * (job.steps - step))} left"

    def _said(self, job: Job) -> str:
        """What a completed job scored, in words."""
        return f"error {self._error(job)}" if self._headline(job) == "error" else self._error(job)

    def _headline(self, job: Job) -> str:
        """The metric that a job's error is in."""
        key = _key(job)
        if key not in self._headlines:
            try:
                self._headlines[key] = job.folder.read_result()["task/headline"]
            except (ConfigurationError, OSError, KeyError):
                return "error"  # it has hardly begun
        return self._headlines[key]

    def _error(self, job: Job) -> str:
        """The headline error of a completed job, on its first set."""
        key = _key(job)
        if key not in self._errors:
            try:
                record = job.folder.read_result()
                scores = scores_of(record)
                value = next(score.value for score in scores if score.metric == record["task/headline"])
                self._errors[key] = _written(record["task/headline"], value)
            except (ConfigurationError, OSError, KeyError, StopIteration):
                self._errors[key] = ""
        return self._errors[key]


def _written(headline: str, value: float) -> str:
    """A value as the column ``error`` has it, with its name where it is none."""
    words = written(headline, value)
    return words if headline == "error" else f"{words} {headline.replace('_', ' ')}"


def read_progress(folder: RunFolder) -> tuple[int, float | None]:
    """Steps done and the last light evaluation's error, from the end of metrics.csv."""
    try:
        with folder.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return 0, None
    # the first line is the header or cut, the last may be half written
    rows = [row for row in csv.reader(lines[1:]) if len(row) == len(CURVES) and row[0].isdigit()]
    errors = [row[CURVES.index("evaluation_error")] for row in rows]
    error = next((float(error) for error in reversed(errors) if error), None)
    return int(rows[-1][0]) if rows else 0, error


def title_of(job: Job) -> str:
    """What tells it from others."""
    return job.label or ONLY


def _key(job: Job) -> str:
    return " ".join(job.overrides)


def first_line(text: str | None) -> str:
    """Of a cause, which may hold a traceback's last words."""
    return (text or "").strip().splitlines()[0] if (text or "").strip() else ""


def clock(seconds: float) -> str:
    """``42 s``, ``3:07 min``, ``2:05 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02d} h"


def _laid_out(rows: Sequence[tuple[str, ...]], width: int) -> Table:
    """Every job on one line: what tells jobs apart has room before their causes, which the end tells whole."""
    gaps = 2 * (len(TITLES) - 1)
    widths = [max(len(cell) for cell in column) for column in zip(TITLES, *rows, strict=True)]
    room = max(16, width - gaps - sum(widths[1:4]))
    if widths[0] + min(widths[4], NOTE) > room:
        # optimizer.lr=1e-3 is lr=1e-3
        rows = [(re.sub(r"(?:^|(?<= ))[\w./]+\.(?=\w+=)", "", row[0]), *row[1:]) for row in rows]
        widths[0] = max(len(row[0]) for row in rows)
    label = min(widths[0], room - min(widths[4], NOTE))
    note = min(widths[4], room - label)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in TITLES:
        table.add_column(title, no_wrap=True, justify="right" if title in ("step", "error") else "left")
    for row in rows:
        # the last of a sweep's keys vary first
        name = row[0] if len(row[0]) <= label else f"…{row[0][len(row[0]) - label + 1 :]}"
        cells = (name, *row[1:4], _cut(row[4], note))
        table.add_row(*(Text(cell, style=STYLES.get(row[1], "") if n == 1 else "") for n, cell in enumerate(cells)))
    return table


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"
