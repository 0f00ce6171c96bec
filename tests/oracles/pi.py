"""Position interpolation: RoPE at position p / s."""

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
    scale: float,
    base: float,
    pairing: str,
    channels: int | None,
) -> Tensor:
    r = channels or q.shape[-1]
    theta = [base ** (-2 * a / r) for a in range(r // 2)]
    scores = []
    for j in range(i + 1):
        query, key = (
            turned(y, int(p) / scale, theta, pairing) for y, p in ((q[i], positions[i]), (k[j], positions[j]))
        )
        scores.append(query @ key / math.sqrt(q.shape[-1]))
    return torch.stack(scores)


def turned(x: Tensor, p: float, theta: list[float], pairing: str, magnitude: float = 1.0) -> Tensor:
    """``x`` ``[head_dim]`` with pair a turned by the angle ``p theta[a]``."""
    out = list(x)
    for a, frequency in enumerate(theta):
        first, second = (2 * a, 2 * a + 1) if pairing == "interleaved" else (a, a + len(theta))
        cos, sin = magnitude * math.cos(p * frequency), magnitude * math.sin(p * frequency)
        out[first] = x[first] * cos - x[second] * sin
        out[second] = x[first] * sin + x[second] * cos
    return torch.stack(out)
