"""The run itself: one training and its scores, in one folder."""

from __future__ import annotations

import errno
import logging
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from rich.console import Console

from lcbench.cost.memory import peak_memory_bytes, reset_peak_memory
from lcbench.engine.callbacks import Checkpoints, Curves, link, load_checkpoint
from lcbench.engine.evaluation import score
from lcbench.engine.experiment import Experiment, cost_of
from lcbench.engine.interrupt import Interrupted, StopRequest
from lcbench.engine.machine import facts_of_machine
from lcbench.engine.module import DivergenceError, TrainingModule
from lcbench.engine.progress import Progress
from lcbench.errors import ConfigurationError
from lcbench.logger.base import RunFacts
from lcbench.model.base import Model
from lcbench.results.record import RunFolder, write_text
from lcbench.results.runs import dotted
from lcbench.results.table import show_run
from lcbench.task.base import TRAIN

#: a full disk, a used-up quota, a file beyond the largest size allowed
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def folder_of(experiment: Experiment) -> RunFolder:
    """The run's folder: the one that already holds what is computed here, or a new name."""
    parent = experiment.outputs / experiment.name
    same = sorted(parent.glob(f"*-{experiment.identity}"))
    return RunFolder(same[0] if same else parent / experiment.folder_name)


def run(experiment: Experiment, console: Console) -> dict[str, Any]:
    """Train and score, or show the finished run, or continue the unfinished one.

    Returns:
        The run's record; ``status`` is completed, failed or interrupted.
    """
    folder = folder_of(experiment)
    result = _record_so_far(folder, console)
    if result.get("status") == "completed" and not experiment.rerun:
        console.print("this run is finished (rerun=true starts over)")
        show_run(console, result, folder.path)
        return result
    with folder.held():
        if experiment.rerun:
            folder.clear()
            result = {}
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


class _Run:
    def __init__(self, experiment: Experiment, folder: RunFolder, console: Console, before: dict[str, Any]) -> None:
        self.earlier_seconds = before.get("cost/wall_seconds", 0.0)
        self.experiment, self.folder, self.console = experiment, folder, console
        self.progress = Progress(console, experiment.trainer.progress)
        self.stop = StopRequest(console)
        self.device = torch.device(experiment.trainer.device)
        self.result: dict[str, Any] = {}
        self.logger_works = True

    def execute(self) -> dict[str, Any]:
        began = time.perf_counter()
        reset_peak_memory(self.device)
        self._open()
        exit_code = 1
        try:
            with self.stop, self.progress:
                scores = self._train_and_score()
            self.result |= {"status": "completed", **scores}
            exit_code = 0
        except (Interrupted, KeyboardInterrupt):
            self.result |= {"status": "interrupted", "error": "stopped by Ctrl-C; the same command continues"}
            self.log.info("interrupted")
            exit_code = 130
        except DivergenceError as error:
            self.result |= {"status": "failed", "error": str(error)}
            self.log.error("%s", error)
        except Exception as error:
            self.log.error("%s", traceback.format_exc())
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                cause = f"no room to write ({error}); earlier files are intact, the same command continues"
                self.result |= {"status": "failed", "error": cause}
            else:
                self.result |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
                self.console.print(traceback.format_exc(), markup=False, soft_wrap=True)
        finally:
            self.result["cost/wall_seconds"] = self.earlier_seconds + time.perf_counter() - began
            self.result["cost/peak_memory_bytes"] = peak_memory_bytes(self.device)
            try:
                self.folder.write_result(self.result)
            except OSError as error:
                self.console.print(f"the record could not be written: {error}", soft_wrap=True)
            self._close(exit_code)
        show_run(self.console, self.result, self.folder.path)
        return self.result

    def _open(self) -> None:
        experiment, folder = self.experiment, self.folder
        write_text(folder.config, "# what this run computes, resolved\n" + yaml.safe_dump(experiment.config))
        self.log = _file_log(folder.log)
        task = experiment.task
        self.result = {
            "status": "running",
            "error": None,
            "seed": experiment.seed,
            "experiment": experiment.name,
            "task/headline": task.headline,
            **{f"chance/{metric}": value for metric, value in task.chance.items()},
            **facts_of_machine(experiment.trainer.device),
            # thousands of records are compared by their configs, and config.yaml takes ten times as long to read
            **{f"config/{key}": value for key, value in dotted(experiment.config).items()},
        }
        folder.write_result(self.result)
        facts = RunFacts(
            folder.path, experiment.config, experiment.name, folder.path.name, list(experiment.config["tags"])
        )
        try:
            self._say(experiment.logger.start(facts))
        except Exception as error:
            self._leave_logger_out(error)

    def _close(self, exit_code: int) -> None:
        try:
            self._say(self.experiment.logger.finish(self.result, exit_code))
        except Exception:
            # the record is written already, and a watcher's failure must not turn a finished run into a failed one
            self._say("the logger could not be closed; run.log says why")
            self.log.error("%s", traceback.format_exc())
        for handler in list(self.log.handlers):
            handler.close()
            self.log.removeHandler(handler)

    def _say(self, line: str | None) -> None:
        if line:
            self.console.print(line, soft_wrap=True)
            self.log.info("%s", line)

    def _train_and_score(self) -> dict[str, Any]:
        settings = self.experiment.trainer
        if settings.threads:
            torch.set_num_threads(settings.threads)
        pl.seed_everything(self.experiment.seed, verbose=False)
        model = self.experiment.make_model()
        checkpoint, step = self._newest_checkpoint()
        first_batch = 0
        if checkpoint is not None:
            first_batch = step * settings.accumulate
            self._say(f"continuing after step {step}")
        module = TrainingModule(self.experiment, model, first_batch)
        curves = Curves(self.folder, self.experiment, self.progress, self._log_metrics)
        trainer = self._trainer([curves, Checkpoints(self.folder, settings.checkpoint_every, curves, self.stop)])
        self.log.info("training on %s, %d steps", settings.device, settings.max_steps)
        self.progress.begin("training", settings.max_steps, first_batch // settings.accumulate)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        seconds = curves.clock.read()
        scores = self._score(model)
        measures = {f"measures/{name}": value for name, value in module.measured().items()}
        return {**scores, **self._cost(model, module.tokens_seen, seconds, trainer.global_step), **measures}

    def _newest_checkpoint(self) -> tuple[Path | None, int]:
        """The newest checkpoint that can be read, and its step."""
        for name in ("last.ckpt", "previous.ckpt"):
            path = self.folder.checkpoints / name
            if not path.exists():
                continue
            try:
                step: int = load_checkpoint(path)["global_step"]
                if name != "last.ckpt":
                    # the damaged one must not take the good one's place at the next save
                    link(path, self.folder.checkpoints / "last.ckpt")
                return path, step
            except Exception as error:
                # whatever a damaged file makes the reader raise, an older one is better than none
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
                self._say(f"{name} cannot be read ({reason}); trying the one before")
        return None, 0

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

    def _score(self, model: Model) -> dict[str, Any]:
        experiment, evaluation = self.experiment, self.experiment.evaluation
        model.to(experiment.trainer.device)
        scores: dict[str, Any] = {}
        for name in experiment.evaluation_sets():
            self.progress.begin(f"scoring {name}", evaluation.examples)
            found = score(
                model,
                experiment.task,
                name,
                examples=evaluation.examples,
                batch_size=evaluation.batch_size,
                seed=evaluation.seed,
                device=experiment.trainer.device,
                precision=experiment.trainer.precision,
                objective=experiment.objective,
                segment=evaluation.segment,
                tick=self._tick,
            )
            scores |= {f"scores/{name}/{metric}": value for metric, value in found.items()}
            self.log.info("scored %s", name)
        return scores

    def _tick(self, done: int) -> None:
        self.stop.check()
        self.progress.tick(done)

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


def _file_log(path: Path) -> logging.Logger:
    logger = logging.Logger(f"lcbench.{path.parent.name}")
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    return logger
