"""CoPE with RoPE: c ((R(i) q_i) . (R(j) k_j) + b_ij), b from unrotated queries and keys."""

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
    context: int | None,
    p_max: int | None,
    gates: str,
    scaled_gates: bool,
    scaled_bias: bool,
    shared: bool,
    undersized: bool,
    base: float,
    pairing: str,
    channels: int | None,
) -> Tensor:
    c = q.shape[-1] ** -0.5
    if gates == "separate_keys":
        own = slice(head * q.shape[-1], (head + 1) * q.shape[-1])
        compared = x @ weights["cope.gate_keys.weight"][own].T
        if "cope.gate_keys.bias" in weights:
            compared = compared + weights["cope.gate_keys.bias"][own]
    else:
        compared = k if gates == "keys" else v
    table = weights["cope.table"]
    open_gates = [torch.sigmoid((c if scaled_gates else 1.0) * (q[i] @ compared[j])) for j in range(i + 1)]
    biases = []
    counted = torch.zeros((), dtype=q.dtype)
    for j in reversed(range(i + 1)):
        counted = counted + open_gates[j]
        p = counted.clamp(max=len(table) - 1)
        floor, ceiling = math.floor(p.item()), math.ceil(p.item())
        w = p - floor
        biases.insert(0, w * (q[i] @ table[ceiling]) + (1 - w) * (q[i] @ table[floor]))
    r = channels or q.shape[-1]
    theta = [base ** (-2 * a / r) for a in range(r // 2)]
    query = turned(q[i], int(positions[i]), theta, pairing)
    scores = []
    for j in range(i + 1):
        key = turned(k[j], int(positions[j]), theta, pairing)
        scores.append(c * (query @ key) + (c if scaled_bias else 1.0) * biases[j])
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
