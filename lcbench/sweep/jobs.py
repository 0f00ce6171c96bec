"""The jobs of a sweep: what each computes, where it lies, and whether it has to run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from lcbench.composition import build, compose
from lcbench.engine.experiment import described, folder_of
from lcbench.errors import ConfigurationError
from lcbench.results.record import RunFolder, write_text
from lcbench.sweep.folder import SweepFolder, digest, key_of, plain, slug


@dataclass
class Job:
    """One run of a sweep.

    Args:
        overrides: what the user asked for, this job's values filled in.
        label: the values that differ between jobs.
        folder: the run's folder.
        steps: its training steps.
        status: waiting, running, or the status of its record.
        facts: what its record says of it before it runs.
        process: once it runs.
        stamp: of its record when it was started.
        error: why it failed.
        overlays: folders of config files that it composes from, beside lcbench's own.
        variables: of its environment.
    """

    overrides: list[str]
    label: str
    folder: RunFolder
    steps: int = 0
    status: str = "waiting"
    facts: dict[str, Any] = field(default_factory=dict)
    process: ForkServerProcess | None = None
    stamp: tuple[int, int] | None = None
    error: str | None = None
    overlays: Sequence[Path] = ()
    variables: dict[str, str] = field(default_factory=dict)


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
    job = Job(overrides, label, folder, experiment.trainer.max_steps, facts=described(experiment), overlays=overlays)
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
