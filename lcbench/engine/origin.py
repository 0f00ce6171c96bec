"""The run that another one continues: with more steps, another threshold, on another device.

A run trained for 600 steps and then to 2000 is not a run of 2000 steps, so it is a run of its own, beside the first.
Its config's root key ``continues`` says what the first run did differently, which with the rest of the config is the
first run's config: the same for every seed. Where the first run had not come to its end, its step is part of it.

The new run begins with the first one's checkpoint, as ``first.ckpt``, and its curves; the first run is only read.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcbench.configs import is_computed
from lcbench.engine.callbacks import as_csv, link, load_checkpoint, rows_until
from lcbench.engine.experiment import Experiment
from lcbench.errors import ConfigurationError
from lcbench.results.record import CURVES, RunFolder, write_text
from lcbench.results.runs import dotted


@dataclass(frozen=True)
class Origin:
    """What a run begins from.

    Args:
        folder: the first run's.
        experiment: the first run's parts.
        record: its result.json, empty if that cannot be read.
        checkpoint: its newest checkpoint.
        content: of the checkpoint.
    """

    folder: RunFolder
    experiment: Experiment
    record: dict[str, Any]
    checkpoint: Path
    content: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps trained so far."""
        return self.content["global_step"]

    @property
    def completed(self) -> bool:
        """Whether the first run came to its end, which is then a matter of its config."""
        return self.record.get("status") == "completed" and self.record.get("train/steps") == self.step

    def difference(self, config: dict[str, Any]) -> str:
        """What the first run did differently from a run with ``config``, for its key ``continues``."""
        ours, theirs = dotted(self.experiment.config), dotted(config)
        words = [
            f"{key}={_shown(value)}"
            for key, value in sorted(ours.items())
            if is_computed(key) and key != "continues" and theirs.get(key, value) != value
        ]
        if not self.completed:
            words.append(f"step={self.step}")
        if "continues" in ours:
            words.append(f"continues=({ours['continues']})")
        return " ".join(words)

    def check(self, experiment: Experiment) -> None:
        """Whether anything is left to train in a run that continues this one.

        Raises:
            ConfigurationError: if not.
        """
        new, old = experiment.trainer, self.experiment.trainer
        if new.max_steps <= self.step:
            raise ConfigurationError(
                f"trainer.max_steps={new.max_steps}: {self.folder.path} has {self.step} steps behind it; take more "
                "(lcbench evaluate scores it elsewhere without training)."
            )
        stopped_early = self.completed and self.step < old.max_steps
        if stopped_early and new.stop_at_error is not None and new.stop_at_error >= (old.stop_at_error or 0.0):
            raise ConfigurationError(
                f"trainer.stop_at_error={new.stop_at_error}: {self.folder.path} stopped at step {self.step} because "
                "its error was as low as that; take a lower one, or null to train on."
            )

    def new_rate(self, experiment: Experiment) -> str | None:
        """A sentence on the learning rate, if the longer schedule is another one from here on."""
        recipe = experiment.optimizer
        before = recipe.rate(self.step, self.experiment.trainer.max_steps)
        after = recipe.rate(self.step, experiment.trainer.max_steps)
        if before == after:
            return None
        return (
            f"optimizer.schedule={recipe.schedule} now ends at step {experiment.trainer.max_steps}: "
            f"the learning rate goes on at {after:.3g}, where it would have been {before:.3g}"
        )

    def begin(self, folder: RunFolder) -> dict[str, Any]:
        """Give a new run what it begins from, unless it has that already; returns what its record begins with.

        Raises:
            ConfigurationError: if the first run is being computed, or has been meanwhile.
        """
        if not (folder.checkpoints / "first.ckpt").exists():
            with self.folder.at_rest():
                self._hand_over(folder)
        seconds = self.record.get("cost/wall_seconds", 0.0)
        name = self.folder.path.resolve().name
        data = {key: value for key, value in self.record.items() if key.startswith("data/")}
        return {"continues/run": name, "continues/step": self.step, "cost/wall_seconds": seconds, **data}

    def _hand_over(self, folder: RunFolder) -> None:
        if load_checkpoint(self.checkpoint)["global_step"] != self.step:
            raise ConfigurationError(f"{self.folder.path} went on meanwhile; the same command takes it as it is now.")
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        rows = rows_until(self.folder.metrics, self.step)
        write_text(folder.metrics, as_csv([list(CURVES), *rows]))
        best = self.folder.checkpoints / "best.ckpt"
        if best.exists() and self._has_light_error():
            _same(best, folder.checkpoints / "best.ckpt")
        # the last thing: a run that was killed before has not begun
        _same(self.checkpoint, folder.checkpoints / "first.ckpt")

    def _has_light_error(self) -> bool:
        """Whether best.ckpt is the best by some light evaluation, and not just the last one."""
        return any(state.get("best", float("inf")) < float("inf") for state in self.content["callbacks"].values())


def _shown(value: Any) -> str:
    return json.dumps(value).replace('"', "")


def _same(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy where they lie on two file systems."""
    try:
        link(source, target)
    except OSError:
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(source, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
