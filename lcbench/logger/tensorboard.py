"""TensorBoard event files, in tensorboard/ of the run's folder."""

from __future__ import annotations

from typing import Any

from lcbench.errors import ConfigurationError
from lcbench.logger.base import RunFacts, RunLogger
from lcbench.results.record import scores_of


class TensorBoard(RunLogger):
    """Curves and final scores as scalars.

    Raises:
        ConfigurationError: if the tensorboard package is not installed.
    """

    def __init__(self) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise ConfigurationError(
                "logger=tensorboard: the package is not installed; pip install 'lcbench[tensorboard]', or logger=csv."
            ) from None

    def start(self, facts: RunFacts) -> str | None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = facts.folder / "tensorboard"
        self.writer = SummaryWriter(str(self.folder))
        return f"TensorBoard: tensorboard --logdir {self.folder}"

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.step = step
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, result: dict[str, Any], exit_code: int) -> str | None:
        for score in scores_of(result):
            step = getattr(self, "step", 0)
            self.writer.add_scalar(f"scores/{score.evaluation_set}/{score.metric}", score.value, step)
        self.writer.close()
        return None
