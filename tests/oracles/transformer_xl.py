"""Transformer-XL: c ((q_i + u) . k_j + (q_i + w) . W_R r_n), in evaluation mode."""

from __future__ import annotations

import math

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
    clamp_length: int | None,
) -> Tensor:
    width = x.shape[-1]
    head_dim = q.shape[-1]
    own_rows = weights["relative.weight"][head * head_dim : (head + 1) * head_dim]
    scores = []
    for j in range(i + 1):
        n = int(positions[i] - positions[j])
        if clamp_length is not None:
            n = min(n, clamp_length)
        angles = [n * 10000 ** (-2 * a / width) for a in range(width // 2)]
        r = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=q.dtype)
        content = (q[i] + weights["u"][head]) @ k[j]
        place = (q[i] + weights["w"][head]) @ (own_rows @ r)
        scores.append((content + place) / math.sqrt(head_dim))
    return torch.stack(scores)
