"""Sinusoidal absolute positions, added before the first layer: within attention, c q_i . k_j."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def row(
    i: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor, positions: Tensor, weights: dict[str, Tensor], **options: Any
) -> Tensor:
    return torch.stack([q[i] @ k[j] / q.shape[-1] ** 0.5 for j in range(i + 1)])


def embed(x: Tensor, positions: Tensor, weights: dict[str, Tensor], **options: Any) -> Tensor:
    out = x.clone()
    width = x.shape[-1]
    for t, p in enumerate(positions.tolist()):
        for channel in range(width):
            angle = p / 10000 ** (2 * (channel // 2) / width)
            out[t, channel] = out[t, channel] + (math.cos(angle) if channel % 2 else math.sin(angle))
    return out
