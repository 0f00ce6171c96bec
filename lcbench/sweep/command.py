"""`lcbench -m`: Hydra expands the values and chooses the launcher; the failures and the comparison end it."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from lcbench.composition import build, compose, sweep_arguments
from lcbench.configs import config_directory
from lcbench.errors import ConfigurationError
from lcbench.logger.base import SweepFacts
from lcbench.results.compare import compare
from lcbench.results.comparison import Comparison
from lcbench.results.record import RunFolder, write_text
from lcbench.results.render import render
from lcbench.sweep.board import Board, title_of
from lcbench.sweep.folder import SWEEPS, SweepFolder, last_words, name_of, plain
from lcbench.sweep.jobs import Job
from lcbench.sweep.launchers import BASIC_SWEEPER, LOCAL, hydra_arguments, run_job

#: why a job has no end of its own, as far as its record tells
UNENDED = {
    "waiting": "never started",
    "running": "did not end while this command ran; the same command continues",
}


def sweep(words: Sequence[str], overlays: Sequence[Path], console: Console) -> int:
    """Expand, launch, and end with the failures and the comparison; returns the exit code.

    Raises:
        ConfigurationError: for overrides that no job could be made of.
    """
    sweep_arguments(words, overlays)
    # of a key given twice Optuna's sweeper would take the word that is not searched, Hydra's the last
    parsed = list(last_words(words).values())
    arguments = sweep_arguments([override.input_line or "" for override in parsed], overlays)
    outputs = _outputs_of(parsed)
    folder = SweepFolder(outputs / SWEEPS / name_of(parsed))
    arguments += hydra_arguments(parsed, outputs, folder.path)
    try:
        with console.status("expanding"):
            hydra, config = _composed(arguments)
            if config.hydra.sweeper._target_ == BASIC_SWEEPER and config.hydra.sweeper.params:
                arguments = _spelled_out(config, arguments, {override.key_or_group for override in parsed})
                config = hydra.compose_config("config", arguments, RunMode.MULTIRUN)
            listed = _listed(config, folder)
        with _watched(folder, console, here=LOCAL in arguments):
            hydra.multirun("config", run_job, arguments, with_log_configuration=False)
        stopped = None
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(" ".join(str(error).split())) from None
    except Exception as error:
        # a launcher's or a sweeper's: what the jobs have computed is not lost with it
        stopped = " ".join(f"{type(error).__name__}: {error}".split())
        write_text(folder.path / "error.log", traceback.format_exc())
        if not any(job.run for job in folder.read()):
            raise ConfigurationError(f"no job could be started: {stopped}") from None
    finally:
        GlobalHydra.instance().clear()
    jobs = [job for job in _jobs(folder) if listed is None or frozenset(job.overrides) in listed]
    if stopped:
        where = folder.path / "error.log"
        console.print(f"broken off: {stopped} ({where}); the same command continues", markup=False, soft_wrap=True)
    comparison = _ending(jobs, console)
    best = folder.path / "optimization_results.yaml"
    if not stopped and best.exists():
        console.print(f"the search's best: {_best(best)}", markup=False, soft_wrap=True)
    if comparison is not None:
        _close(jobs, overlays, folder, comparison, console)
    return 1 if stopped or any(job.status != "completed" for job in jobs) else 0


def _outputs_of(parsed: Sequence[Override]) -> Path:
    """Where the runs are kept."""
    given = [o.value() for o in parsed if o.key_or_group == "outputs" and not o.is_sweep_override()]
    return Path(str(given[-1]) if given else os.environ.get("LCBENCH_OUTPUTS", "outputs")).resolve()


def _composed(arguments: Sequence[str]) -> tuple[Hydra, DictConfig]:
    """Hydra, and the sweep's own config."""
    version.setbase("1.3")
    # conf/hydra/launcher/ray.yaml bears the name of the plugin's own config on purpose
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/ray' is validated against ConfigStore schema")
    hydra = Hydra.create_main_hydra2("lcbench", create_config_search_path(str(config_directory())))
    return hydra, hydra.compose_config("config", list(arguments), RunMode.MULTIRUN)


def _spelled_out(config: DictConfig, arguments: Sequence[str], said: set[str]) -> list[str]:
    """The arguments with what an experiment sweeps over, but for keys that the command line gives: of those Hydra
    would make every combination of both."""
    parameters = config.hydra.sweeper.params.items()
    unsaid = [f"{key}={value}" for key, value in parameters if key not in said]
    return [*unsaid, *arguments, "hydra.sweeper.params=null"]


def _listed(config: DictConfig, folder: SweepFolder) -> set[frozenset[str]] | None:
    """Begin the sweep's folder; returns every job's overrides, or None where only the search will know them."""
    parameters = (config.hydra.sweeper.get("params") or {}).items()
    words = [f"{key}={value}" for key, value in parameters] + list(config.hydra.overrides.task)
    parsed = OverridesParser.create().parse_overrides(words)
    fixed = {o.key_or_group for o in parsed} - {o.key_or_group for o in parsed if o.is_sweep_override()}
    folder.begin(os.environ.get("WANDB_RUN_GROUP") or folder.path.name, fixed)
    if config.hydra.sweeper._target_ != BASIC_SWEEPER:
        return None
    (every,) = BasicSweeper.split_arguments(parsed, None)
    for overrides in every:
        folder.add(overrides)
    return {frozenset(map(plain, overrides)) for overrides in every}


@contextmanager
def _watched(folder: SweepFolder, console: Console, here: bool) -> Iterator[None]:
    """A live table of jobs that run elsewhere; those that run here are shown by their launcher."""
    if here:
        yield
        return
    board, ended = Board(console), dict[str, Job]()

    def look() -> Group:
        jobs = []
        for job in _jobs(folder, ended):
            jobs.append(job)
            if job.status == "completed":
                ended[" ".join(job.overrides)] = job
        return board.table(jobs)

    with Live(get_renderable=look, console=console, refresh_per_second=1, transient=True):
        yield


def _jobs(folder: SweepFolder, known: dict[str, Job] | None = None) -> list[Job]:
    """The jobs as their records say; ``known`` ones are not read again."""
    jobs = []
    for listed in folder.read():
        job = (known or {}).get(" ".join(listed.overrides))
        if job is None:
            job = Job(listed.overrides, folder.label(listed.overrides), RunFolder(listed.run or folder.path))
            if listed.run is not None:
                _read(job)
        jobs.append(job)
    return jobs


def _read(job: Job) -> None:
    try:
        record = job.folder.read_result()
    except ConfigurationError as error:
        job.error = str(error)
        return
    job.status, job.error = record["status"], record.get("error")
    job.steps = record.get("config/trainer.max_steps", 0)


def _ending(jobs: Sequence[Job], console: Console) -> Comparison | None:
    """The comparison of what completed, and the rest with its causes."""
    rest = [job for job in jobs if job.status != "completed"]
    done = [job for job in jobs if job.status == "completed"]
    console.print(f"{len(done)} of {len(jobs)} runs completed\n")
    comparison = compare([job.folder.path for job in done]) if done else None
    if comparison is not None:
        render(comparison, console)
    if rest:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("job", "status", "cause"):
            table.add_column(title)
        for job in rest:
            cause = job.error or UNENDED.get(job.status, "")
            table.add_row(title_of(job), job.status, cause.partition("\n")[0])
        console.print(table)
    return comparison


def _best(file: Path) -> str:
    """The best trial's parameters and value, as the search left them."""
    found = yaml.safe_load(file.read_text())
    words = [f"{plain(key)}={value}" for key, value in found["best_params"].items()]
    return f"{' '.join(words)} with {found['best_value']:.6g}"


def _close(
    jobs: Sequence[Job], overlays: Sequence[Path], folder: SweepFolder, comparison: Comparison, console: Console
) -> None:
    """Hand the comparison to the logger of the sweep's runs."""
    first = next(job for job in jobs if job.status == "completed")
    experiment = build(compose(first.overrides, overlays))
    facts = SweepFacts(folder.path, folder.group, list(experiment.config["tags"]))
    try:
        line = experiment.logger.finish_sweep(facts, comparison)
    except Exception as error:
        # the table stands above, and the runs are recorded
        line = f"the logger could not take the comparison: {' '.join(str(error).split())[:200]}"
    if line:
        console.print(line, soft_wrap=True)
