"""NTK-aware interpolation: RoPE with the base times s^(r / (r - 2))."""

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
    theta = [(base * scale ** (r / (r - 2))) ** (-2 * a / r) for a in range(r // 2)]
    query = turned(q[i], int(positions[i]), theta, pairing)
    scores = []
    for j in range(i + 1):
        key = turned(k[j], int(positions[j]), theta, pairing)
        scores.append(query @ key / math.sqrt(q.shape[-1]))
    return torch.stack(scores)


def turned(x: Tensor, p: float, theta: list[float], pairing: str, magnitude: float = 1.0) -> Tensor:
    """``x`` ``[head_dim]`` with pair a turned by the angle ``p theta[a]``."""
    pairs = range(len(theta))
    first = [2 * a if pairing == "interleaved" else a for a in pairs]
    second = [2 * a + 1 if pairing == "interleaved" else a + len(theta) for a in pairs]
    cos = torch.tensor([magnitude * math.cos(p * frequency) for frequency in theta], dtype=x.dtype)
    sin = torch.tensor([magnitude * math.sin(p * frequency) for frequency in theta], dtype=x.dtype)
    out = x.clone()
    out[first] = x[first] * cos - x[second] * sin
    out[second] = x[first] * sin + x[second] * cos
    return out
