"""AdamW: decoupled weight decay (Loshchilov, Hutter 2017, arXiv 1711.05101).

    w <- w - lr * (m / (sqrt(v) + epsilon) + weight_decay * w)

with m and v the bias-corrected running means of the gradient and its square. Runs torch's fused update.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from lcbench.optimizer.base import OptimizerRecipe


class AdamW(OptimizerRecipe):
    """AdamW; for the arguments see ``OptimizerRecipe``."""

    def optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.epsilon, fused=True)
