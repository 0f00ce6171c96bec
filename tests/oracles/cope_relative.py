"""CoPE with relative positions: c (q_i . k_j + q_i . r[n] + b_ij); b only in layers that have a table for it."""

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
    every: int,
    p_max: int | None,
    gates: str,
    scaled_gates: bool,
    scaled_bias: bool,
    undersized: bool,
) -> Tensor:
    c = q.shape[-1] ** -0.5
    biases = [0.0] * (i + 1)
    if "cope.table" in weights:
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
    scores = []
    for j in range(i + 1):
        score = c * (q[i] @ k[j]) + (c if scaled_bias else 1.0) * biases[j]
        n = int(positions[i] - positions[j])
        if n < context:
            score = score + c * (q[i] @ weights["relative.table"][n])
        scores.append(score)
    return torch.stack(scores)
