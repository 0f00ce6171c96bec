"""Adam (Kingma, Ba 2014, arXiv 1412.6980); weight decay, if any, is added to the gradient.

    g <- g + weight_decay * w;   w <- w - lr * m / (sqrt(v) + epsilon)

with m and v the bias-corrected running means of g and its square. Runs torch's fused update.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from lcbench.optimizer.base import OptimizerRecipe


class Adam(OptimizerRecipe):
    """Adam; for the arguments see ``OptimizerRecipe``."""

    def optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        return torch.optim.Adam(groups, lr=self.lr, betas=self.betas, eps=self.epsilon, fused=True)
