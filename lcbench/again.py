"""A run that exists, taken up again: trained on, or scored elsewhere; recorded beside the run, never over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lcbench.composition import build, changed, slug
from lcbench.engine.callbacks import newest_checkpoint
from lcbench.engine.evaluate import evaluate as evaluate_network
from lcbench.engine.experiment import Experiment, folder_of
from lcbench.engine.origin import Origin
from lcbench.engine.progress import composing
from lcbench.engine.run import run
from lcbench.errors import ConfigurationError
from lcbench.results.record import RunFolder
from lcbench.trained import config_of, experiment_of

#: what a run may change that continues another one
TRAINED_ON = (
    "trainer.max_steps",
    "trainer.stop_at_error",
    "trainer.log_every",
    "trainer.evaluate_every",
    "trainer.checkpoint_every",
    "trainer.threads",
    "trainer.device",
    "trainer.progress",
    "trainer.deterministic",
    "evaluation",
    "logger",
    "tags",
    "outputs",
)

#: what an evaluation may ask for
SCORED = (
    "evaluation",
    "trainer.device",
    "trainer.precision",
    "trainer.threads",
    "trainer.progress",
    "logger",
    "tags",
    "rerun",
)


def resume(
    path: Path, overrides: Sequence[str], console: Console, trust: bool = False, overlays: Sequence[Path] = ()
) -> dict[str, Any]:
    """Continue the run in folder ``path`` where it lies; or, where ``overrides`` change what is computed, begin a new
    run beside it with its last checkpoint.

    Returns:
        The run's record.

    Raises:
        ConfigurationError: if ``path`` is no run, or for an override that a trained network does not allow.
    """
    first = experiment_of(path, trust)
    reason = "a run that goes on keeps what its weights so far were trained with"
    composition = changed(first.config, overrides, TRAINED_ON, reason, overlays, trust)
    elsewhere = any(word.startswith("outputs=") for word in overrides)
    if composition.hash == first.identity:
        if elsewhere:
            raise ConfigurationError("outputs: a run continues where it lies; move its folder instead.")
        with composing(console) as watcher:
            experiment = build(composition, watcher=watcher)
        return run(experiment, console, RunFolder(path))
    folder = RunFolder(path)
    with folder.at_rest():
        origin = _origin(folder, first, console)
    config = composition.config | {"continues": origin.difference(composition.config)}
    composition = replace(composition, config=config)
    name = _name(path, composition.differs, composition.hash)
    with composing(console) as watcher:
        experiment = replace(build(composition, trained=True, watcher=watcher), folder_name=name)
    origin.check(experiment)
    beside = folder_of(experiment, None if elsewhere else path.resolve().parent)
    rate = origin.new_rate(experiment)
    if rate:
        console.print(rate, soft_wrap=True)
    return run(experiment, console, beside, origin)


def _origin(folder: RunFolder, experiment: Experiment, console: Console) -> Origin:
    try:
        record = folder.read_result()
    except ConfigurationError:
        record = {}
    checkpoint, content = newest_checkpoint(folder, lambda line: console.print(line, soft_wrap=True))
    if checkpoint is None:
        raise ConfigurationError(f"{folder.path} has no checkpoint that can be read: there is nothing to continue.")
    return Origin(folder, experiment, record, checkpoint, content)


def _name(path: Path, differs: Sequence[tuple[str, str]], digest: str) -> str:
    """The first run's name and what differs, readable, and the hash, unique."""
    before = path.resolve().name.rpartition("-")[0]
    words = slug(differs)
    kept = "" if before == "default" else before[: max(0, 79 - len(words))]
    return f"{f'{kept}_{words}'.strip('_-')[:80]}-{digest}"


def evaluate(
    path: str | Path,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    trust: bool = False,
    overlays: Sequence[Path] = (),
) -> dict[str, Any]:
    """Score a run's trained network as ``overrides`` say, such as ``evaluation.lengths=[1k,4k]``; without any, as the
    run itself was scored.

    Returns:
        The evaluation's record, which is kept in the run's ``evaluations/``.

    Raises:
        ConfigurationError: if ``path`` is no run or has no checkpoint yet, or for an override that a trained network
            does not allow.
    """
    folder = RunFolder(Path(path))
    reason = "an evaluation takes the network as it was trained"
    composition = changed(config_of(folder), overrides, SCORED, reason, overlays, trust)
    console = console or Console(quiet=True)
    with composing(console) as watcher:
        experiment = build(composition, trained=True, watcher=watcher)
    asked = [
        (key.removeprefix("evaluation."), value)
        for key, value in composition.differs
        if key.startswith("evaluation.") or key == "trainer.precision"
    ]
    return evaluate_network(experiment, folder, slug(asked), console, experiment.rerun)
