"""Where a sweep's jobs run, and what a search learns of them.

``hydra/launcher=local`` runs all jobs here; ``slurm`` and ``ray`` take each to another machine, where ``run_job`` does
what the local launcher does for all. Wherever it is, a job is the command ``lcbench key=value`` in a process of its
own, which a failure ends alone, and its run's folder lies on a disk that all machines share.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig
from rich.console import Console

from lcbench.errors import ConfigurationError
from lcbench.results.record import scores_of
from lcbench.sweep.folder import SweepFolder
from lcbench.sweep.jobs import Job, prepare
from lcbench.sweep.processes import launch, usable_cores

#: by the override that asks for it, the plugin it needs and the extra that installs it
EXTRAS = {
    "hydra/launcher=slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "hydra/launcher=submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "hydra/launcher=submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "hydra/launcher=ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "hydra/sweeper=optuna": ("hydra_plugins.hydra_optuna_sweeper", "optuna"),
}
#: Hydra's own, which runs every combination and makes nothing of what a job returns
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
LOCAL = "hydra/launcher=local"


def is_installed(module: str) -> bool:
    """Whether a module, perhaps of a package that is not there, could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def hydra_arguments(parsed: Sequence[Override], outputs: Path, sweep: Path) -> list[str]:
    """What a sweep tells Hydra besides the user's words: the launcher, where its own files go, no files of Hydra's.

    Args:
        parsed: the user's words.
        outputs: where runs are kept, absolute: a job on another machine may start elsewhere.
        sweep: the sweep's folder.

    Raises:
        ConfigurationError: if a word needs a package that is not installed.
    """
    words = [override.input_line or "" for override in parsed]
    for word, (plugin, extra) in EXTRAS.items():
        if word in words and not is_installed(plugin):
            instead = f", or {LOCAL}" if "launcher" in word else ""
            raise ConfigurationError(f"{word}: the package is not installed; pip install 'lcbench[{extra}]'{instead}.")
    arguments = [
        f"hydra.sweep.dir={_quoted(sweep)}",
        "hydra.sweep.subdir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
    ]
    keys = {override.key_or_group for override in parsed}
    if "hydra/launcher" not in keys:
        arguments.append(LOCAL)
    elif LOCAL not in words:
        arguments.append(f"++outputs={_quoted(outputs)}")
    if "hydra/sweeper=optuna" in words:
        import optuna

        # what they have to say stands in the tables
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.ERROR)
        arguments += [] if "hydra.sweeper.max_failure_rate" in keys else ["hydra.sweeper.max_failure_rate=1.0"]
        # a search repeated with the same words proposes the same trials, and finds them computed
        if "hydra/sweeper/sampler" not in keys and "hydra.sweeper.sampler.seed" not in keys:
            arguments.append("hydra.sweeper.sampler.seed=0")
    return arguments


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def launch_batch(job_overrides: Sequence[Sequence[str]], config: DictConfig) -> list[JobReturn]:
    """What Hydra's local launcher does: run one batch."""
    jobs = prepare(job_overrides, _overlays(config.hydra.searchpath), SweepFolder(Path(config.hydra.sweep.dir)))
    launch(jobs, Console(highlight=False))
    return [
        JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED, _return_value=headline(job))
        for job, overrides in zip(jobs, job_overrides, strict=True)
    ]


def run_job(config: DictConfig) -> float | None:
    """One job on whatever machine a launcher chose: the command in a process of its own."""
    hydra = HydraConfig.get()
    overrides = [str(word) for word in hydra.overrides.task]
    (job,) = prepare([overrides], _overlays(hydra.searchpath), SweepFolder(Path(hydra.sweep.dir)))
    launch([job], Console(quiet=True), _cores())
    return headline(job)


def _overlays(searchpath: Sequence[str] | None) -> list[Path]:
    return [Path(path.removeprefix("file://")) for path in searchpath or []]


def _cores() -> int:
    """The cores that the cluster gave to this job."""
    for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):  # Ray sets the second
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return usable_cores()


def headline(job: Job) -> float | None:
    """A run's headline metric on its first evaluation set, which a search minimises.

    None if it did not complete: an exception would end the sweep, and a value that is no number tells a search that
    the trial failed.
    """
    if job.status != "completed":
        return None
    record = job.folder.read_result()
    return next(score.value for score in scores_of(record) if score.metric == record["task/headline"])
