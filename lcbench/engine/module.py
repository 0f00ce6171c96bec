"""The Lightning module: one training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lcbench.attention.base import unpacked
from lcbench.dataset.base import Batch
from lcbench.engine.experiment import Experiment
from lcbench.engine.reading import feeding_of
from lcbench.engine.tally import facts_of
from lcbench.model.base import Model, ModelOutput, ModelState
from lcbench.objective.base import Step


class DivergenceError(RuntimeError):
    """The loss is no longer a number."""


class TrainingModule(pl.LightningModule):
    """Trains ``experiment``'s network on its objective.

    Args:
        experiment: the parts of the run.
        model: the network. Only its training pass is compiled, if at all: evaluation has lengths of its own.
        first_batch: index of the first batch to draw: training continues where a checkpoint left it.
    """

    def __init__(self, experiment: Experiment, model: Model, first_batch: int = 0) -> None:
        super().__init__()
        self.experiment = experiment
        self.model = model
        self.training_pass: Callable[..., ModelOutput] = (
            torch.compile(model.forward) if experiment.trainer.compile else model.forward
        )
        self.first_batch = first_batch
        self.feeding = feeding_of(experiment.trainer, model)
        self.head = experiment.objective.head(model)
        # after the last batch, for one that goes on where it ended
        self.state: ModelState | None = None
        self.measures: dict[str, Tensor] = {}
        self.losses: dict[str, Tensor] = {}
        self.last_finite_loss = float("nan")
        self.tokens_seen = 0

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        state = self.state if batch.continues else None

        def read() -> ModelOutput:
            return self.feeding(self.training_pass, batch.tokens, facts_of(batch), state)

        output = read()
        if self.experiment.dataset.carries_state:
            self.state = output.state.detach()
        objective, settings = self.experiment.objective, self.experiment.trainer
        self.measures = output.measures
        if settings.writes_row(self.global_step + 1):
            self.measures = {**self.measures, **objective.measures(output, batch)}
        losses = objective(output, batch, Step(self.global_step / settings.max_steps, read, self.head))
        loss = torch.stack(list(losses.values())).sum()
        self._stop_unless_finite(loss)
        self.tokens_seen += batch.tokens.numel()
        self.losses = {name: value.detach() for name, value in losses.items()}
        return loss

    def _stop_unless_finite(self, loss: Tensor) -> None:
        # on an accelerator reading the loss waits for it, so it is read only when it is logged anyway
        if loss.device.type != "cpu" and self.global_step % self.experiment.trainer.log_every:
            return
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
            raise DivergenceError(
                f"the loss is {value} at step {self.global_step + 1}, with learning rate {rate:.3g}; "
                f"the last finite loss was {self.last_finite_loss:.6g}. A smaller optimizer.lr, "
                "optimizer.warmup_steps or optimizer.clip_norm=1.0 are the usual cures."
            )
        self.last_finite_loss = value

    def measured(self) -> dict[str, float]:
        """What network and objective say of the last batch: ``layer_1/gate/head_0``, ``keys/mean_cosine``."""
        found = {}
        for name, value in self.measures.items():
            if value.dim() == 0:
                found[name] = float(value)
            else:
                found |= {f"{name}/head_{head}": float(number) for head, number in enumerate(value)}
        return found

    def configure_optimizers(self) -> Any:
        recipe, steps = self.experiment.optimizer, self.experiment.trainer.max_steps
        trained = self.model if self.head is None else nn.ModuleList([self.model, self.head])
        optimizer, schedule = recipe.build(trained, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _follow_schedule(self) -> None:
        """Gives the next update the rate of this run's schedule.

        A checkpoint holds the rate that the schedule it was written under would have gone on with, and the scheduler
        sets another one only after the first update: a run that goes on for longer has another schedule.
        """
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            assert isinstance(schedule, LambdaLR)
            parts = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, base, factor in parts:
                group["lr"] = base * factor(schedule.last_epoch)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.experiment.optimizer.clip(optimizer.param_groups)

    def train_dataloader(self) -> Iterable[Batch]:
        return self.experiment.dataset.loader(self.first_batch, None)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_index: int) -> Batch:
        return batch.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tokens_seen"] = self.tokens_seen
        if self.state is not None:
            checkpoint["state"] = self.state.packed()
        checkpoint["random"] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            checkpoint["random"]["cuda"] = torch.cuda.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.tokens_seen = checkpoint["tokens_seen"]
        if "state" in checkpoint:
            state = unpacked(checkpoint["state"])
            assert isinstance(state, ModelState)
            self.state = state.map(lambda tensor: tensor.to(self.device))
        self.random = checkpoint["random"]

    def on_train_start(self) -> None:
        self._follow_schedule()
        # the last thing before the first step, so that nothing in between can draw from the generators
        random = getattr(self, "random", None)
        if random is not None:
            torch.set_rng_state(random["cpu"])
            if "cuda" in random and torch.cuda.is_available():
                torch.cuda.set_rng_state(random["cuda"])
