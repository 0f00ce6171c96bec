"""CoPE: c (q_i . k_j + b_ij), b interpolated at the number of open gates from j to i."""

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
) -> Tensor:
    c = q.shape[-1] ** -0.5
    if gates == "separate_keys":
        own = slice(head * q.shape[-1], (head + 1) * q.shape[-1])
        compared = x @ weights["gate_keys.weight"][own].T
        if "gate_keys.bias" in weights:
            compared = compared + weights["gate_keys.bias"][own]
    else:
        compared = k if gates == "keys" else v
    table = weights["table"]
    open_gates = [torch.sigmoid((c if scaled_gates else 1.0) * (q[i] @ compared[j])) for j in range(i + 1)]
    biases = []
    counted = torch.zeros((), dtype=q.dtype)
    for j in reversed(range(i + 1)):
        counted = counted + open_gates[j]
        p = counted.clamp(max=len(table) - 1)
        floor, ceiling = math.floor(p.item()), math.ceil(p.item())
        w = p - floor
        biases.insert(0, w * (q[i] @ table[ceiling]) + (1 - w) * (q[i] @ table[floor]))
    scores = [c * (q[i] @ k[j]) + (c if scaled_bias else 1.0) * biases[j] for j in range(i + 1)]
    return torch.stack(scores)
