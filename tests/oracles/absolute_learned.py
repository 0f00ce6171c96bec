"""Learned absolute positions, added before the first layer: within attention, c q_i . k_j."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def row(
    i: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor, positions: Tensor, weights: dict[str, Tensor], **options: Any
) -> Tensor:
    return torch.stack([q[i] @ k[j] / q.shape[-1] ** 0.5 for j in range(i + 1)])


def embed(x: Tensor, positions: Tensor, weights: dict[str, Tensor], **options: Any) -> Tensor:
    return torch.stack([token + weights["table"][int(p)] for token, p in zip(x, positions, strict=True)])
