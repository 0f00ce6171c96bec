"""Relative positions: c (q_i . k_j + q_i . e[n]), 0 for n beyond the table."""

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
        n = int(positions[i] - positions[j])
        score = q[i] @ k[j]
        if n < context:
            score = score + q[i] @ weights["table"][n]
        scores.append(score / q.shape[-1] ** 0.5)
    return torch.stack(scores)
