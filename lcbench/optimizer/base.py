"""The interface of an optimizer: parameter groups, warm-up and schedule, clipping."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lcbench.errors import ConfigurationError
from lcbench.position.base import PositionEncoding

Schedule = Literal["constant", "linear", "cosine", "inverse_square_root"]

#: what shifts, scales or looks up rather than multiplies; it is not decayed
NOT_DECAYED = (nn.LayerNorm, nn.RMSNorm, nn.Embedding, PositionEncoding)


class OptimizerRecipe(ABC):
    """How parameters are updated.

    Learning rate at update t (from 0), with W warm-up updates and N updates in all:
    ``lr * (t + 1) / W`` while t < W, then lr times, with u = (t - W) / (N - W),

    - constant: 1
    - linear: ``1 - (1 - final) u``
    - cosine: ``final + (1 - final) (1 + cos(pi u)) / 2``
    - inverse_square_root: ``sqrt(max(W, 1) / (t + 1))``

    A run that continues another one for longer follows the schedule of its own N from its first update on: after a
    cosine that ended at zero the rate jumps to what the longer cosine has there.

    Args:
        lr: peak learning rate.
        betas: decay rates of the two running means.
        epsilon: added to the root of the second one.
        weight_decay: for matrices only, unless ``decay_all``.
        decay_all: decay norms, biases, embeddings and other vectors as well.
        schedule: shape after warm-up.
        warmup_steps: updates of linear warm-up.
        final_lr_ratio: what linear and cosine end at, as a share of ``lr``.
        clip_norm: largest norm of all gradients together, or None; what a layer keeps apart has a norm of its own.

    Raises:
        ConfigurationError: for values outside their range.
    """

    def __init__(
        self,
        *,
        lr: float = 1e-3,
        betas: list[float] = [0.9, 0.999],  # noqa: B006 the signature is the schema
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        decay_all: bool = False,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        final_lr_ratio: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        if not lr > 0:
            raise ConfigurationError(f"optimizer.lr={lr}: must be positive.")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigurationError(f"optimizer.betas={betas}: must be two numbers from 0 up to, not including, 1.")
        if clip_norm is not None and not clip_norm > 0:
            raise ConfigurationError(f"optimizer.clip_norm={clip_norm}: must be positive, or null for no clipping.")
        for name, value in {"warmup_steps": warmup_steps, "weight_decay": weight_decay}.items():
            if value < 0:
                raise ConfigurationError(f"optimizer.{name}={value}: must not be negative.")
        self.lr, self.betas, self.epsilon = lr, (betas[0], betas[1]), epsilon
        self.weight_decay, self.decay_all = weight_decay, decay_all
        self.schedule, self.warmup_steps, self.final_lr_ratio = schedule, warmup_steps, final_lr_ratio
        self.clip_norm = clip_norm

    @abstractmethod
    def optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The torch optimizer over parameter groups that carry their own ``weight_decay``."""

    def build(self, model: nn.Module, max_steps: int) -> tuple[Optimizer, LambdaLR]:
        """The optimizer of ``model`` and its schedule over ``max_steps`` updates."""
        optimizer = self.optimizer(self.groups(model))
        return optimizer, LambdaLR(optimizer, self.factor(max_steps))

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Decayed and undecayed parameters.

        A module may keep parameters apart by an attribute ``own_group``: a dict from parameter name to the options of
        its group, e.g. ``{"beta": {"lr": 0.01, "weight_decay": 0.0}}``; for ``clip`` see there.
        """
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        apart: list[dict[str, Any]] = []
        seen: set[int] = set()
        for module in model.modules():
            own = getattr(module, "own_group", {})
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in seen or not parameter.requires_grad:
                    continue
                seen.add(id(parameter))
                if name in own:
                    apart.append({"params": [parameter], "weight_decay": 0.0, **own[name]})
                elif self.decay_all or (parameter.dim() > 1 and not isinstance(module, NOT_DECAYED)):
                    decayed.append(parameter)
                else:
                    plain.append(parameter)
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]] + apart

    def clip(self, groups: list[dict[str, Any]]) -> None:
        """Scales the gradients of parameter groups down to ``clip_norm``: one norm for all groups that have the same
        ``clip``, a name that a module's ``own_group`` may give, and one for those without. So what is learned from
        a loss of its own does not change the scale of the others' update."""
        if self.clip_norm is None:
            return
        together: dict[str | None, list[Tensor]] = {}
        for group in groups:
            together.setdefault(group.get("clip"), []).extend(group["params"])
        for parameters in together.values():
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)

    def rate(self, step: int, max_steps: int) -> float:
        """The learning rate of update ``step``, from 0."""
        return self.lr * self.factor(max_steps)(step)

    def factor(self, max_steps: int) -> Callable[[int], float]:
        """The learning rate's factor at an update."""
        shapes = {
            "constant": lambda u, t: 1.0,
            "linear": lambda u, t: 1 - (1 - self.final_lr_ratio) * u,
            "cosine": lambda u, t: self.final_lr_ratio + (1 - self.final_lr_ratio) * (1 + math.cos(math.pi * u)) / 2,
            "inverse_square_root": lambda u, t: math.sqrt(max(self.warmup_steps, 1) / (t + 1)),
        }
        shape, warmup = shapes[self.schedule], self.warmup_steps

        def at(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return shape(min(1.0, (step - warmup) / max(1, max_steps - warmup)), step)

        return at
