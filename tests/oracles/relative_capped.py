"""Capped relative positions: c (q_i . k_j + q_i . e[min(n, R - 1)])."""

from __future__ import annotations

import torch
from torch import Tensor


def row(
    i: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor,
    positions: Tensor,
    weights: dict[str, Tensor],
    *,
    head: int,
    n_heads: int,
    context: int,
) -> Tensor:
    scores = []
    for j in range(i + 1):
        n = min(int(positions[i] - positions[j]), context - 1)
        scores.append((q[i] @ k[j] + q[i] @ weights["table"][n]) / q.shape[-1] ** 0.5)
    return torch.stack(scores)
