"""YaRN: by-parts frequencies, and scores times (0.1 ln s + 1)^2."""

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
    context: int,
    scale: float,
    ramp: str,
    alpha: float,
    beta: float,
    base: float,
    pairing: str,
    channels: int | None,
) -> Tensor:
    r = channels or q.shape[-1]
    theta = []
    for a in range(r // 2):
        own = base ** (-2 * a / r)
        if ramp == "paper":
            g = (context * own / (2 * math.pi) - alpha) / (beta - alpha)
        else:
            low = max(0, math.floor(r * math.log(context / (2 * math.pi * beta)) / (2 * math.log(base))))
            high = min(r - 1, math.ceil(r * math.log(context / (2 * math.pi * alpha)) / (2 * math.log(base))))
            g = 1 - (a - low) / (high - low if high != low else 0.001)
        g = min(1.0, max(0.0, g))
        theta.append((1 - g) * own / scale + g * own)
    magnitude = 0.1 * math.log(scale) + 1
    query = turned(q[i], int(positions[i]), theta, pairing, magnitude)
    scores = []
    for j in range(i + 1):
        key = turned(k[j], int(positions[j]), theta, pairing, magnitude)
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
