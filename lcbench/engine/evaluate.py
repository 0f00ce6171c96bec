"""Scoring a trained network again: at other lengths, on other sets, with more examples.

The record is ``evaluations/<what differs>-<8 hex>.json`` in the run's folder, with the keys of a run's own record, and
beside it a ``.csv`` with a row for every document of a text. Both are written after every set, so what was scored
before a stop is not scored again. The run's own files are only read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lcbench.cost.memory import peak_memory_bytes, reset_peak_memory
from lcbench.engine.callbacks import load_checkpoint, network_weights, newest_checkpoint
from lcbench.engine.data import data_of, refuse_other_data
from lcbench.engine.details import Details
from lcbench.engine.evaluation import scored_sets
from lcbench.engine.experiment import Experiment, described
from lcbench.engine.faults import cause_of
from lcbench.engine.interrupt import Interrupted, StopRequest
from lcbench.engine.machine import facts_of_machine
from lcbench.engine.progress import Progress
from lcbench.engine.report import Reporting
from lcbench.engine.run import LogFile
from lcbench.errors import ConfigurationError
from lcbench.logger.base import RunFacts
from lcbench.results.evaluations import show_evaluation
from lcbench.results.grid import grid_figure, grids_of
from lcbench.results.record import RunFolder, hold, write_text
from lcbench.results.runs import dotted
from lcbench.schema import options_of

#: options of an evaluation that its scores do not depend on
WITHOUT_EFFECT = ("sets", "lengths", "light_examples", "batch_size", "chunk")

#: what a record holds of the sets that are scored
FOUND = ("scores/", "counts/", "streaming/")


def evaluate(experiment: Experiment, folder: RunFolder, slug: str, console: Console, rerun: bool) -> dict[str, Any]:
    """Score the trained network in ``folder`` as ``experiment`` says, or show the record of having done so.

    Args:
        experiment: the run's parts, with the evaluation that is asked for.
        folder: the run's.
        slug: what was asked for, as part of a file's name.
        console: where to show it.
        rerun: score again although there is a record.

    Returns:
        The evaluation's record; ``status`` is completed, failed or interrupted.

    Raises:
        ConfigurationError: if the run has no such checkpoint, or another process makes the same evaluation.
    """
    content = checkpoint_of(folder, experiment.evaluation.checkpoint, lambda line: console.print(line, soft_wrap=True))
    digest = _identity(experiment, content["global_step"])
    same = sorted(folder.evaluations.glob(f"*-{digest}.json"))
    path = same[0] if same else folder.evaluations / f"{slug[:80] or 'default'}-{digest}.json"
    with hold(folder.evaluations / f".{digest}.lock", path):
        for leftover in folder.evaluations.glob(f".{path.stem}.*"):
            leftover.unlink()
        before = {} if rerun else _record(path, console)
        if before.get("status") == "completed":
            console.print("this evaluation is recorded (rerun=true scores again)")
            show_evaluation(console, path, before)
            return before
        return _Evaluation(experiment, folder, path, content, console, before).execute()


def checkpoint_of(folder: RunFolder, name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The content of a run's checkpoint: last, or the newest that can be read, or best.

    Raises:
        ConfigurationError: if there is none that can be read.
    """
    if name == "last":
        path, content = newest_checkpoint(folder, say)
        if path is not None:
            return content
        raise ConfigurationError(f"{folder.path} has no checkpoint that can be read: it has not been trained so far.")
    path = folder.checkpoints / f"{name}.ckpt"
    if not path.exists():
        raise ConfigurationError(f"evaluation.checkpoint={name}: {path} does not exist; the closest is last.")
    try:
        return load_checkpoint(path)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise ConfigurationError(f"evaluation.checkpoint={name}: {path} cannot be read ({reason}).") from None


def _identity(experiment: Experiment, step: int) -> str:
    """8 hex digits of what decides the scores of a trained network."""
    options = {name: option.default for name, option in options_of(type(experiment.evaluation)).items()}
    options |= {key: value for key, value in experiment.config["evaluation"].items() if key != "_target_"}
    for name in WITHOUT_EFFECT:
        options.pop(name, None)
    decides = [options, experiment.evaluation_sets(), experiment.trainer.precision, step]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]


def _record(path: Path, console: Console) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        return record if isinstance(record, dict) else {}
    except FileNotFoundError:
        return {}
    except ValueError as error:
        console.print(f"{path} cannot be read: {error}. Scoring again.", soft_wrap=True)
        return {}


@dataclass
class _Evaluation(Reporting):
    experiment: Experiment
    folder: RunFolder
    path: Path
    content: dict[str, Any]
    console: Console
    before: dict[str, Any]

    def execute(self) -> dict[str, Any]:
        self.began = time.perf_counter()
        self.device = torch.device(self.experiment.trainer.device)
        reset_peak_memory(self.device)
        self.result = self._first_record()
        self.log = logging.Logger(f"lcbench.{self.path.stem}")
        # until the log is open; without any, logging writes to the screen
        self.log.addHandler(logging.NullHandler())
        self.stop = StopRequest(self.console)
        with self.stop:
            exit_code = self._executed()
            try:
                self._close(exit_code, self.path.with_suffix(".log").name)
            finally:
                with self.stop.finishing():
                    self._write_last()
        show_evaluation(self.console, self.path, self.result)
        self._draw()
        return self.result

    def _draw(self) -> None:
        """The grid of length and depth beside the record, where there is one and the packages that draw it."""
        for grid in grids_of(self.result):
            for kind in ("svg", "png"):
                path = self.path.with_name(f"{self.path.stem}{grid.base and f'-{grid.base}'}.{kind}")
                try:
                    grid_figure(grid, path)
                except ConfigurationError as error:
                    self.console.print(str(error), soft_wrap=True)
                    return
                self.console.print(f"figure {path}", soft_wrap=True)

    def _executed(self) -> int:
        """Does all the work and says in the record how it ended; returns the exit code for the logger."""
        try:
            self._write()
            self.log.addHandler(LogFile.of(self.path.with_suffix(".log")))
            self._start_logger()
            with Progress(self.console, self.experiment.trainer.progress) as progress:
                self._score(progress)
        except (Interrupted, KeyboardInterrupt) as error:
            stopped = error if isinstance(error, Interrupted) else Interrupted()
            self.result |= {"status": "interrupted", "error": stopped.cause, "signal": stopped.signal.name}
            self.log.info("%s", stopped.cause)
            return int(str(stopped.code))
        except ConfigurationError as error:
            self.log.error("%s", error)
            self.result |= {"status": "failed", "error": str(error)}
            return 1
        except Exception as error:
            self.log.error("%s", traceback.format_exc())
            cause = cause_of(error)
            self.result |= {"status": "failed", "error": cause or f"{type(error).__name__}: {error}"}
            if cause is None:
                self.console.print(traceback.format_exc(), markup=False, soft_wrap=True)
            return 1
        self.result["status"] = "completed"
        return 0

    def _write_last(self) -> None:
        try:
            self._write()
        except OSError as error:
            self.console.print(f"the record could not be written: {error}", soft_wrap=True)

    def _first_record(self) -> dict[str, Any]:
        experiment = self.experiment
        # the config that the run was trained with stands in the run's own record
        facts = {key: value for key, value in described(experiment).items() if not key.startswith("config/")}
        config = {key: experiment.config[key] for key in ("task", "evaluation", "trainer")}
        return {
            "status": "running",
            "error": None,
            **facts,
            **facts_of_machine(experiment.trainer.device),
            "evaluated/run": self.folder.path.resolve().name,
            "evaluated/checkpoint": experiment.evaluation.checkpoint,
            "evaluated/step": self.content["global_step"],
            **{f"config/{key}": value for key, value in dotted(config).items()},
            **{key: value for key, value in self.before.items() if key.startswith(FOUND)},
        }

    def _score(self, progress: Progress) -> None:
        settings = self.experiment.trainer
        if settings.threads:
            torch.set_num_threads(settings.threads)
        data = data_of(self.experiment, progress, self.stop.check)
        trained_on = self.folder.read_result() if self.folder.result.exists() else {}
        refuse_other_data(trained_on, data, "train another network on what is there now")
        self.result |= data
        model = self.experiment.make_model()
        model.load_state_dict(network_weights(self.content))
        done = {key.split("/")[1] for key in self.result if key.startswith("scores/")}
        if done:
            self.console.print(f"scored before: {', '.join(sorted(done))}", soft_wrap=True)
        details = Details(self.path.with_suffix(".csv"), done)
        for name, found in scored_sets(model, self.experiment, progress, self.stop.check, done, details.add):
            self.result |= found
            self._write()
            self.log.info("scored %s", name)

    def _write(self) -> None:
        earlier = self.before.get("cost/wall_seconds", 0.0)
        self.result["cost/wall_seconds"] = earlier + time.perf_counter() - self.began
        self.result["cost/peak_memory_bytes"] = peak_memory_bytes(self.device)
        write_text(self.path, json.dumps(self.result, indent=1) + "\n")

    def _start_logger(self) -> None:
        """What a logger keeps of an evaluation stands apart from what it keeps of the run."""
        experiment, files = self.experiment, self.path.with_suffix("")
        tags = list(experiment.config["tags"])
        name = f"{self.folder.path.resolve().name} {files.name}"
        facts = RunFacts(files, experiment.config, experiment.name, name, tags, "evaluate", self.folder.path)
        try:
            self._say(experiment.logger.start(facts))
        except Exception as error:
            # a watcher's failure must not cost the scores
            self._say(f"the logger failed and is left out: {type(error).__name__}: {error}")
            self.log.error("%s", traceback.format_exc())
