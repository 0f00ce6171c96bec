"""The run itself: one training and its scores, in one folder."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.plugins.environments import LightningEnvironment
from rich.console import Console

from lcbench.cost.memory import peak_memory_bytes, reset_peak_memory
from lcbench.engine.callbacks import (
    CheckpointFiles,
    Checkpoints,
    Curves,
    link,
    load_checkpoint,
    network_weights,
    newest_checkpoint,
)
from lcbench.engine.data import data_of, refuse_other_data
from lcbench.engine.details import Details
from lcbench.engine.evaluation import scored_sets
from lcbench.engine.experiment import Experiment, cost_of, described, folder_of
from lcbench.engine.faults import cause_of
from lcbench.engine.interrupt import Interrupted, StopRequest
from lcbench.engine.machine import facts_of_machine
from lcbench.engine.module import DivergenceError, TrainingModule
from lcbench.engine.origin import Origin
from lcbench.engine.progress import Progress
from lcbench.engine.report import Reporting
from lcbench.errors import ConfigurationError
from lcbench.logger.base import RunFacts
from lcbench.model.base import Model
from lcbench.results.record import RunFolder, write_text
from lcbench.results.table import show_run
from lcbench.task.base import TRAIN


def _facts_of(experiment: Experiment, folder: RunFolder) -> RunFacts:
    return RunFacts(folder.path, experiment.config, experiment.name, folder.path.name, list(experiment.config["tags"]))


def run(
    experiment: Experiment, console: Console, folder: RunFolder | None = None, origin: Origin | None = None
) -> dict[str, Any]:
    """Train and score, or show the finished run, or continue the unfinished one.

    Args:
        experiment: the parts of the run.
        console: where to show it.
        folder: where the run lies, if not where its config says.
        origin: the run that a new one continues.

    Returns:
        The run's record; ``status`` is completed, failed or interrupted.
    """
    folder = folder or folder_of(experiment)
    result = _record_so_far(folder, console)
    if result.get("status") == "completed" and not experiment.rerun:
        console.print("this run is finished (rerun=true starts over)")
        if line := experiment.logger.finished_before(_facts_of(experiment, folder), result):
            console.print(line, soft_wrap=True)
        show_run(console, result, folder.path)
        return result
    with folder.held():
        if experiment.rerun:
            folder.clear()
            result = {}
        if origin is not None:
            result = origin.begin(folder) | result
        return _Run(experiment, folder, console, result).execute()


def _record_so_far(folder: RunFolder, console: Console) -> dict[str, Any]:
    """The record of what was computed before, empty if there is none or it cannot be read."""
    if not folder.result.exists():
        return {}
    try:
        return folder.read_result()
    except ConfigurationError as error:
        console.print(f"{error} The run continues from its checkpoint.", soft_wrap=True)
        return {}


class _Run(Reporting):
    def __init__(self, experiment: Experiment, folder: RunFolder, console: Console, before: dict[str, Any]) -> None:
        self.data_before = {key: value for key, value in before.items() if key.startswith("data/")}
        self.earlier_seconds = before.get("cost/wall_seconds", 0.0)
        self.continues = {key: value for key, value in before.items() if key.startswith("continues/")}
        self.experiment, self.folder, self.console = experiment, folder, console
        self.progress = Progress(console, experiment.trainer.progress)
        self.stop = StopRequest(console)
        self.device = torch.device(experiment.trainer.device)
        self.log = logging.Logger(f"lcbench.{folder.path.name}")
        # until run.log is open; without any, logging writes to the screen
        self.log.addHandler(logging.NullHandler())
        self.result: dict[str, Any] = {}
        self.logger_started, self.logger_works = False, True

    def execute(self) -> dict[str, Any]:
        began = time.perf_counter()
        reset_peak_memory(self.device)
        with self.stop:
            exit_code = self._executed()
            self.result["cost/wall_seconds"] = self.earlier_seconds + time.perf_counter() - began
            self.result["cost/peak_memory_bytes"] = peak_memory_bytes(self.device)
            try:
                # before the record: a run killed in between is scored and logged again, not lost to the logger
                self._close(exit_code, "run.log", self.logger_started)
            finally:
                with self.stop.finishing():
                    self._write_record()
        show_run(self.console, self.result, self.folder.path)
        return self.result

    def _write_record(self) -> None:
        try:
            self.folder.write_result(self.result)
        except OSError as error:
            self.console.print(f"the record could not be written: {error}", soft_wrap=True)

    def _executed(self) -> int:
        """Does all the work and says in the record how it ended; returns the exit code for the logger."""
        try:
            self._open()
            with self.progress:
                scores = self._train_and_score()
        except (Interrupted, KeyboardInterrupt) as error:
            stopped = error if isinstance(error, Interrupted) else Interrupted()
            self.result |= {"status": "interrupted", "error": stopped.cause, "signal": stopped.signal.name}
            self.log.info("%s", stopped.cause)
            return int(str(stopped.code))
        except (DivergenceError, ConfigurationError) as error:
            self.result |= {"status": "failed", "error": str(error)}
            self.log.error("%s", error)
            return 1
        except Exception as error:
            self.log.error("%s", traceback.format_exc())
            cause = cause_of(error)
            self.result |= {"status": "failed", "error": cause or f"{type(error).__name__}: {error}"}
            if cause is None:
                self.console.print(traceback.format_exc(), markup=False, soft_wrap=True)
            return 1
        self.result |= {"status": "completed", **scores}
        return 0

    def _open(self) -> None:
        experiment, folder = self.experiment, self.folder
        self.result = {
            "status": "running",
            "error": None,
            **described(experiment),
            **self.continues,
            **facts_of_machine(experiment.trainer.device),
        }
        self.log.addHandler(LogFile.of(folder.log))
        write_text(folder.config, "# what this run computes, resolved\n" + yaml.safe_dump(experiment.config))
        folder.write_result(self.result)
        self.logger_started = True
        try:
            self._say(experiment.logger.start(_facts_of(experiment, folder)))
        except Exception as error:
            self._leave_logger_out(error)

    def _train_and_score(self) -> dict[str, Any]:
        settings = self.experiment.trainer
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._prepare()
        pl.seed_everything(self.experiment.seed, verbose=False)
        model = self.experiment.make_model()
        checkpoint, step = self._newest_checkpoint()
        first_batch = step * settings.accumulate
        if checkpoint is not None:
            self._say(f"continuing after step {step}")
        module = TrainingModule(self.experiment, model, first_batch)
        curves = Curves(self.folder, self.experiment, self.progress, self._log_metrics)
        trainer = self._trainer([curves, Checkpoints(self.folder, settings.checkpoint_every, curves, self.stop)])
        self.log.info("training on %s, %d steps", settings.device, settings.max_steps)
        self.progress.begin("training", settings.max_steps, first_batch // settings.accumulate)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        best = self.folder.checkpoints / "best.ckpt"
        if not best.exists():
            # no light evaluation chose one
            link(self.folder.checkpoints / "last.ckpt", best)
        seconds = curves.clock.read()
        scores = self._score(model, trainer.global_step)
        measures = {f"measures/{name}": value for name, value in module.measured().items()}
        return {**scores, **self._cost(model, module.tokens_seen, seconds, trainer.global_step), **measures}

    def _prepare(self) -> None:
        """Makes ready what examples are drawn from; a run goes on with what it began with."""
        found = data_of(self.experiment, self.progress, self.stop.check)
        if any(self.folder.checkpoints.glob("*.ckpt")):
            # kept in the record of a run that fails for it
            self.result |= self.data_before
            refuse_other_data(self.data_before, found, "rerun=true starts over with what is there now")
        self.result |= found
        self.folder.write_result(self.result)

    def _newest_checkpoint(self) -> tuple[Path | None, int]:
        """The newest checkpoint that can be read, and its step."""
        path, content = newest_checkpoint(self.folder, self._say)
        if path is None:
            if "continues" in self.experiment.config:
                raise ConfigurationError("no checkpoint is left to continue from; resume the first run again")
            return None, 0
        if path.name != "last.ckpt":
            # a damaged one must not take the good one's place at the next save
            link(path, self.folder.checkpoints / "last.ckpt")
        return path, content["global_step"]

    def _trainer(self, callbacks: list[pl.Callback]) -> pl.Trainer:
        settings = self.experiment.trainer
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        return pl.Trainer(
            accelerator=settings.device,
            devices=1,
            precision={"32": "32-true", "bf16-mixed": "bf16-mixed"}[settings.precision],  # type: ignore[arg-type]
            max_steps=settings.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            deterministic=settings.deterministic,
            callbacks=callbacks,
            # one process on one device, wherever it runs: under SLURM Lightning would requeue the job itself
            plugins=[LightningEnvironment(), CheckpointFiles()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.folder.path,
        )

    def _log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if self.logger_works:
            try:
                self.experiment.logger.log(metrics, step)
            except Exception as error:
                self._leave_logger_out(error)
        self.log.info("step %d  %s", step, "  ".join(f"{k} {v:.6g}" for k, v in metrics.items()))

    def _leave_logger_out(self, error: Exception) -> None:
        """A watcher's failure must not cost the run: the run's own files hold all that the logger would have had."""
        self.logger_works = False
        self._say(f"the logger failed and is left out from here on: {type(error).__name__}: {error}")
        self.log.error("%s", traceback.format_exc())

    def _score(self, model: Model, step: int) -> dict[str, Any]:
        checkpoint = self.experiment.evaluation.checkpoint
        if checkpoint == "best":
            content = load_checkpoint(self.folder.checkpoints / "best.ckpt")
            model.load_state_dict(network_weights(content))
            step = content["global_step"]
        scores: dict[str, Any] = {"evaluated/checkpoint": checkpoint, "evaluated/step": step}
        details = Details(self.folder.documents)
        for name, found in scored_sets(model, self.experiment, self.progress, self.stop.check, keep=details.add):
            scores |= found
            self.log.info("scored %s", name)
        return scores

    def _cost(self, model: Model, tokens: int, seconds: float, steps: int) -> dict[str, Any]:
        try:
            operations: int | None = cost_of(self.experiment).training_operations
        except ConfigurationError as error:
            self.log.warning("operations not counted: %s", error)
            operations = None
        batches = steps * self.experiment.trainer.accumulate
        length = self.experiment.task.token_length(TRAIN) - 1
        return {
            "train/steps": steps,
            "cost/parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "cost/train_tokens": tokens,
            "cost/train_flops": None if operations is None else batches * operations,
            "cost/tokens_per_second": tokens / seconds if seconds else None,
            "cost/state_bytes": model.state_bytes(1, length, torch.float32),
        }


class LogFile(logging.FileHandler):
    """run.log; what it cannot write, on a full disk, is no reason to stop: the record says how a run ended."""

    @classmethod
    def of(cls, path: Path) -> LogFile:
        handler = cls(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        return handler

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 logging's name
        return None
