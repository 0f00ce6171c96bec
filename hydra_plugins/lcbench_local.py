"""Hydra's way to lcbench's local sweeps: hydra/launcher=local."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Every job a process of its own on this machine, as many at a time as fit the cores."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Hydra imports this file whenever it composes anything, the rest only when there is a sweep
        from lcbench.sweep.launchers import launch_batch

        return launch_batch(job_overrides, self.config)
