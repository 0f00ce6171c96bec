"""ALiBi: c q_i . k_j - m_h n, for any number of heads."""

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
) -> Tensor:
    power = 1
    while power * 2 <= n_heads:
        power *= 2
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    odd = 1
    while len(slopes) < n_heads:
        slopes.append(2 ** (-8 * odd / (2 * power)))
        odd += 2
    scores = []
    for j in range(i + 1):
        scores.append(q[i] @ k[j] / q.shape[-1] ** 0.5 - slopes[head] * int(positions[i] - positions[j]))
    return torch.stack(scores)
