"""What happens around the training steps: curves, progress, checkpoints, light evaluation."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from lcbench.engine.evaluation import score
from lcbench.engine.experiment import Experiment
from lcbench.engine.interrupt import StopRequest
from lcbench.engine.module import TrainingModule
from lcbench.engine.progress import Progress
from lcbench.results.metrics import written
from lcbench.results.record import CURVES, RunFolder, write_text


class Clock:
    """Seconds spent in training steps, light evaluations and checkpoints left out; continues after a resume."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def read(self) -> float:
        return self.seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)


class Curves(pl.Callback):
    """Writes metrics.csv, and passes the same rows on to the logger and the screen.

    A row is written every ``log_every`` steps and at a light evaluation. Rows after the checkpoint a run continues
    from are dropped, so that the file has neither gaps nor doubles.
    """

    def __init__(
        self,
        folder: RunFolder,
        experiment: Experiment,
        progress: Progress,
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        self.folder, self.experiment, self.progress = folder, experiment, progress
        # not named log: Lightning puts a method of that name on every callback
        self.pass_on = log
        self.clock = Clock()
        self.error: float | None = None
        self.best = float("inf")
        self.solved_in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        state = {"seconds": self.clock.read(), "best": self.best, "solved_in_a_row": self.solved_in_a_row}
        return {**state, "light": self._light(), "stop_at_error": self.experiment.trainer.stop_at_error}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.clock = Clock(state_dict["seconds"])
        # a run that continues another one may ask for other light evaluations or another threshold
        if state_dict.get("light", self._light()) == self._light():
            self.best = state_dict["best"]
            threshold = self.experiment.trainer.stop_at_error
            if state_dict.get("stop_at_error", threshold) == threshold:
                self.solved_in_a_row = state_dict["solved_in_a_row"]

    def _light(self) -> list[Any]:
        """What light errors are measured on: those of two lists cannot be compared."""
        evaluation = self.experiment.evaluation
        return [self.experiment.evaluation_sets()[0], evaluation.light_examples, evaluation.seed]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        kept = rows_until(self.folder.metrics, trainer.global_step)
        write_text(self.folder.metrics, as_csv([list(CURVES), *kept]))
        self.step = trainer.global_step
        self._stop_if_solved(trainer)
        self.clock.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        settings, step = self.experiment.trainer, trainer.global_step
        if step == self.step:  # this batch's gradient waits for others
            return
        self.step = step
        light = settings.evaluates_light(step)
        if light:
            self._evaluate(trainer, module)
        if settings.writes_row(step):
            self._row(module, step, light)

    def _evaluate(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        self.clock.stop()
        task, evaluation = self.experiment.task, self.experiment.evaluation
        scores = score(
            module.model,
            task,
            self.experiment.evaluation_sets()[0],
            examples=evaluation.light_examples,
            batch_size=evaluation.batch_size,
            seed=evaluation.seed,
            device=module.device.type,
            precision=self.experiment.trainer.precision,
            objective=self.experiment.objective,
            chunk=evaluation.chunk,
            segment=evaluation.segment,
        )
        self.error = scores[task.headline]
        threshold = self.experiment.trainer.stop_at_error
        self.solved_in_a_row = self.solved_in_a_row + 1 if threshold is not None and self.error <= threshold else 0
        self._stop_if_solved(trainer)
        self.clock.start()

    def _stop_if_solved(self, trainer: pl.Trainer) -> None:
        if self.solved_in_a_row >= 2:
            trainer.should_stop = True

    def _row(self, module: TrainingModule, step: int, light: bool) -> None:
        seconds = self.clock.read()
        row = {
            "step": step,
            "seconds": round(seconds, 3),
            "tokens": module.tokens_seen,
            "tokens_per_second": round(module.tokens_seen / seconds, 1) if seconds else 0.0,
            "learning_rate": self.experiment.optimizer.rate(step - 1, self.experiment.trainer.max_steps),
            "loss": module.last_finite_loss,
        }
        if light and self.error is not None:
            row["evaluation_error"] = self.error
        with self.folder.metrics.open("a", newline="") as file:
            csv.DictWriter(file, CURVES, restval="").writerow(row)
        self.progress.step(step, row["loss"], self._headline(), row["tokens_per_second"])
        metrics = {f"train/{k}": v for k, v in row.items() if k not in ("step", "evaluation_error")}
        if len(module.losses) > 1:
            metrics |= {f"train/loss/{name}": float(value) for name, value in module.losses.items()}
        metrics |= {f"measures/{name}": value for name, value in module.measured().items()}
        if "evaluation_error" in row:
            metrics[f"evaluation/{self.experiment.task.headline}"] = row["evaluation_error"]
        self.pass_on(metrics, step)

    def _headline(self) -> str:
        """What the last light evaluation said, in words."""
        name = self.experiment.task.headline
        if self.error is None:
            return ""
        return f"{name.replace('_', ' ')} " + written(name, self.error)


class Checkpoints(pl.Callback):
    """Keeps last.ckpt, previous.ckpt and best.ckpt (lowest light error), each written under another name first.

    Where a stop was requested, it is obeyed here, between two steps, with a checkpoint written.
    """

    def __init__(self, folder: RunFolder, every: int, curves: Curves, stop: StopRequest) -> None:
        self.folder, self.every, self.curves, self.stop = folder, every, curves, stop

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.step = trainer.global_step
        # Lightning has put its own handler of SIGTERM before ours by now, which ends the run in a way of its own
        self.stop.install()
        self.stop.check()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, error, curves = trainer.global_step, self.curves.error, self.curves
        if step == self.step:
            return
        self.step = step
        improved = error is not None and error < curves.best
        if not (improved or step % self.every == 0 or self.stop.requested):
            return
        curves.clock.stop()
        if improved and error is not None:
            curves.best = error
        self.save(trainer, best=improved)
        self.stop.check()
        curves.clock.start()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.curves.clock.stop()
        self.save(trainer, best=False)

    def save(self, trainer: pl.Trainer, best: bool) -> None:
        """Write a checkpoint; a process killed at any moment leaves the old last.ckpt or the new one.

        Args:
            trainer: what to save.
            best: the checkpoint is the best so far.
        """
        folder = self.folder.checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        temporary, last = folder / f".last.ckpt.{os.getpid()}", folder / "last.ckpt"
        try:
            # the rows up to here must be on the disk before the checkpoint that continues after them
            with self.folder.metrics.open("rb") as file:
                os.fsync(file.fileno())
            trainer.save_checkpoint(temporary)
            if best:
                # before last.ckpt, which knows of this best error: a run killed in between finds it again
                link(temporary, folder / "best.ckpt")
            if last.exists():
                link(last, folder / "previous.ckpt")
            temporary.replace(last)
        finally:
            temporary.unlink(missing_ok=True)


class CheckpointFiles(TorchCheckpointIO):
    """Writes to the path given: Lightning's own way goes by a file in /tmp, which a killed process leaves there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with Path(path).open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())


def link(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, atomically: a checkpoint is never changed, only replaced."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    os.link(source, temporary)
    temporary.replace(target)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content; no code in it is run."""
    return torch.load(path, map_location="cpu", weights_only=True)


def network_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The network's part of a checkpoint's content."""
    weights = checkpoint["state_dict"]
    # beside the network's stand those of the objective's head
    return {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}


def newest_checkpoint(folder: RunFolder, say: Callable[[str], None]) -> tuple[Path | None, dict[str, Any]]:
    """The newest checkpoint that can be read, and its content; what cannot be read is said.

    ``first.ckpt`` is what a run began from that continues another one.
    """
    for name in ("last.ckpt", "previous.ckpt", "first.ckpt"):
        path = folder.checkpoints / name
        if not path.exists():
            continue
        try:
            content = load_checkpoint(path)
            int(content["global_step"])
            return path, content
        except Exception as error:
            # whatever a damaged file makes the reader raise, an older one is better than none
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
            say(f"{name} cannot be read ({reason}); trying the one before")
    return None, {}


def rows_until(path: Path, step: int) -> list[list[str]]:
    """The complete rows of a metrics.csv up to a step, without its header."""
    if not path.exists():
        return []
    rows = list(csv.reader(io.StringIO(path.read_text())))[1:]
    complete = [row for row in rows if len(row) == len(CURVES) and row[0].isdigit()]
    return [row for row in complete if int(row[0]) <= step]


def as_csv(rows: list[list[str]]) -> str:
    """Rows as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
