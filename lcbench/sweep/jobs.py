"""The jobs of a sweep on this machine: every job a process of its own, as many at a time as fit the cores."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lcbench.composition import build, compose
from lcbench.engine.callbacks import Curves
from lcbench.engine.run import folder_of
from lcbench.errors import ConfigurationError
from lcbench.logger.wandb import AGENT_VARIABLES
from lcbench.results.record import RunFolder, write_text
from lcbench.sweep.folder import SweepFolder, digest, key_of, plain, slug

#: seconds between two looks at the running jobs
LOOK_EVERY = 0.25
#: how much of the end of metrics.csv a look reads
LAST_BYTES = 2**14
#: what a job is called that nothing tells from others
ONLY = "the only job"


@dataclass
class Job:
    """One run of a sweep.

    Args:
        overrides: what the user asked for, this job's values filled in.
        label: the values that differ between jobs.
        folder: the run's folder.
        steps: its training steps.
        status: waiting, running, or the status of its record.
        process: while it runs.
        error: why it failed.
        overlays: folders of config files that it composes from, beside lcbench's own.
        variables: of its environment.
    """

    overrides: list[str]
    label: str
    folder: RunFolder
    steps: int = 0
    status: str = "waiting"
    process: subprocess.Popen[bytes] | None = None
    error: str | None = None
    overlays: Sequence[Path] = ()
    variables: dict[str, str] = field(default_factory=dict)

    def progress(self) -> tuple[int, str]:
        """Steps done and the last light evaluation's error, from metrics.csv."""
        try:
            with self.folder.metrics.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
                lines = file.read().decode().splitlines()
        except OSError:
            return 0, ""
        # the first line is the header or cut, the last may be half written
        rows = [row for row in csv.reader(lines[1:]) if len(row) == len(Curves.columns)]
        errors = [row[Curves.columns.index("evaluation_error")] for row in rows]
        error = next((error for error in reversed(errors) if error), "")
        return int(rows[-1][0]) if rows else 0, f"{100 * float(error):.2f} %" if error else ""


def prepare(jobs: Sequence[Sequence[str]], overlays: Sequence[Path], sweep: SweepFolder) -> list[Job]:
    """The jobs with their folders, listed in the sweep's; one that cannot be composed is recorded as failed."""
    return [_prepared([plain(override) for override in overrides], overlays, sweep) for overrides in jobs]


def _prepared(overrides: list[str], overlays: Sequence[Path], sweep: SweepFolder) -> Job:
    label = sweep.label(overrides)
    try:
        experiment = build(compose(overrides, overlays))
    except ConfigurationError as error:
        outputs = next((word.partition("=")[2] for word in overrides if key_of(word) == "outputs"), None)
        parent = Path(outputs or os.environ.get("LCBENCH_OUTPUTS", "outputs"))
        folder = RunFolder(parent / "refused" / f"{slug(label) or 'job'}-{digest(sorted(overrides))}")
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_result({"status": "failed", "error": str(error), "experiment": "refused"})
        write_text(folder.log, f"refused: {' '.join(overrides)}\n{error}\n")
        sweep.add(overrides, folder.path)
        return Job(overrides, label, folder, status="failed", error=str(error))
    folder = folder_of(experiment)
    sweep.add(overrides, folder.path)
    job = Job(overrides, label, folder, experiment.trainer.max_steps, overlays=overlays)
    job.variables = {"WANDB_RUN_GROUP": sweep.group, **({"WANDB_NAME": label} if label else {})}
    if experiment.rerun:
        return job
    try:
        record = folder.read_result()
    except ConfigurationError:
        # nothing there yet, or nothing that can be read: the job finds out itself
        return job
    if record["status"] == "completed" or (record["status"] == "failed" and not experiment.retry):
        job.status, job.error = record["status"], record.get("error")
    return job


def launch(jobs: list[Job], console: Console) -> None:
    """Run the waiting jobs, as many at a time as there are cores; ends when all have ended.

    Ctrl-C reaches the jobs as it reaches this process: each stops between two steps, and those that wait do not start.
    """
    cores = os.cpu_count() or 1
    waiting = [job for job in jobs if job.status == "waiting"]
    at_a_time = max(1, min(cores, len(waiting)))
    threads = max(1, cores // at_a_time)
    stopping = 0

    def interrupted(number: int, frame: object) -> None:
        nonlocal stopping
        stopping += 1
        waiting.clear()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        with Live(table_of(jobs), console=console, refresh_per_second=4, transient=True) as live:
            while waiting or any(job.status == "running" for job in jobs):
                while waiting and sum(job.status == "running" for job in jobs) < at_a_time:
                    _start(waiting.pop(0), threads)
                time.sleep(LOOK_EVERY)
                for job in jobs:
                    if job.status == "running":
                        _look(job)
                live.update(table_of(jobs))
    finally:
        signal.signal(signal.SIGINT, before)
        for job in jobs:
            if job.process is not None and job.process.poll() is None:
                job.process.kill()
    if stopping:
        raise KeyboardInterrupt


def _start(job: Job, threads: int) -> None:
    overlays = [f"--config-dir={path}" for path in job.overlays]
    words = [sys.executable, "-m", "lcbench", *overlays, *job.overrides, "trainer.progress=false"]
    job.folder.path.mkdir(parents=True, exist_ok=True)
    with (job.folder.path / "console.log").open("wb") as screen:
        job.process = subprocess.Popen(
            words, stdout=screen, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=_environment(job, threads)
        )
    job.status = "running"


def _environment(job: Job, threads: int) -> dict[str, str]:
    """This process's, without a W&B agent's run, which is not the job's."""
    inherited = {name: value for name, value in os.environ.items() if name not in AGENT_VARIABLES}
    return {**inherited, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **job.variables}


def _look(job: Job) -> None:
    assert job.process is not None
    code = job.process.poll()
    if code is None:
        return
    try:
        record: dict[str, Any] = job.folder.read_result()
    except ConfigurationError:
        record = {}
    if record.get("status") not in ("completed", "failed", "interrupted"):
        # the process could not write its own end: killed, or out of memory
        if code in (130, -signal.SIGINT):
            job.status, job.error = "interrupted", "stopped by Ctrl-C; the same command continues"
            return
        if code == 2:
            # it refused to begin; what the folder holds is not this process's to change
            screen = (job.folder.path / "console.log").read_text(errors="replace").strip().splitlines()
            job.status, job.error = "failed", screen[-1] if screen else "refused"
            return
        cause = f"killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        last = (job.folder.path / "console.log").read_text(errors="replace").strip().splitlines()
        record |= {"status": "failed", "error": f"{cause}{': ' + last[-1] if last and code > 0 else ''}"}
        job.folder.write_result(record)
    job.status, job.error = record["status"], record.get("error")


def table_of(jobs: Sequence[Job]) -> Table:
    """The jobs that say something: all but the waiting ones, which are counted."""
    waiting = sum(job.status == "waiting" for job in jobs)
    done = sum(job.status == "completed" for job in jobs)
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left", caption_style="dim")
    table.caption = f"{done} of {len(jobs)} done, {waiting} waiting"
    for title in ("job", "status", "step", "error"):
        table.add_column(title, no_wrap=title != "job", justify="right" if title in ("step", "error") else "left")
    for job in jobs:
        if job.status == "running":
            step, error = job.progress()
            table.add_row(job.label or ONLY, "running", f"{step:,}/{job.steps:,}", error)
        elif job.status not in ("waiting", "completed"):
            table.add_row(job.label or ONLY, job.status, "", "")
    return table
