"""`lcbench -m`: Hydra expands the values and chooses the launcher; the failures and the comparison end it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lcbench.composition import sweep_arguments
from lcbench.configs import config_directory
from lcbench.errors import ConfigurationError
from lcbench.results.compare import compare
from lcbench.results.render import render
from lcbench.sweep.jobs import Job, headline, launch, prepare


def sweep(words: Sequence[str], overlays: Sequence[Path], console: Console) -> int:
    """Expand, launch, and end with the failures and the comparison; returns the exit code.

    Raises:
        ConfigurationError: for overrides that no job could be made of.
    """
    retry = "retry=true" in words
    arguments = sweep_arguments([word for word in words if not word.startswith("retry=")], overlays)
    if not any(word.startswith("hydra/launcher=") for word in words):
        arguments.append("hydra/launcher=local")
    if "hydra/launcher=local" in arguments:
        arguments.append(f"hydra.launcher.retry={str(retry).lower()}")
    with console.status("expanding"):
        path = create_config_search_path(str(config_directory()))
        hydra = Hydra.create_main_hydra2(task_name="lcbench", config_search_path=path)
    try:
        with tempfile.TemporaryDirectory(prefix="lcbench-sweep-") as folder:
            arguments.append(f"hydra.sweep.dir={folder}")
            batches = hydra.multirun(
                config_name="config", task_function=run_job, overrides=arguments, with_log_configuration=False
            )
    except HydraException as error:
        raise ConfigurationError(" ".join(str(error).split())) from None
    finally:
        GlobalHydra.instance().clear()
    overrides = [list(returned.overrides or []) for batch in batches or [] for returned in batch]
    return _ending(prepare(overrides, overlays, retry=False), console)


def run_job(config: DictConfig) -> float:
    """One job on whatever machine a launcher chose: the command in a process of its own; its headline error."""
    overrides = [str(word) for word in HydraConfig.get().overrides.task]
    (job,) = prepare([overrides], [Path(p.removeprefix("file://")) for p in config.hydra.searchpath or []], True)
    launch([job], Console(quiet=True))
    return headline(job)


def _ending(jobs: list[Job], console: Console) -> int:
    failed = [job for job in jobs if job.status != "completed"]
    done = [job for job in jobs if job.status == "completed"]
    console.print(f"{len(done)} of {len(jobs)} runs completed\n")
    if done:
        render(compare([job.folder.path for job in done]), console)
    if failed:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("job", "status", "cause"):
            table.add_column(title)
        for job in failed:
            table.add_row(job.label, job.status, (job.error or "").splitlines()[0] if job.error else "")
        console.print(table)
    return 1 if failed else 0
