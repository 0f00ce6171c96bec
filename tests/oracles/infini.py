"""Infini-attention, token by token: every read-out is computed anew from all stored tokens.

The linear memory is explicit kernel attention, weights f(q).f(k_j) / sum_j f(q).f(k_j), over all tokens of earlier
segments. The delta rule's matrix is built up segment by segment, from its equation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CASES = [{"segment": 8}, {"segment": 5, "update": "linear_delta"}, {"segment": 16, "initial_gate": 0.2}]
DEGENERATE = {"segment": 1000}


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[[int, Tensor, Tensor, Tensor, int], Tensor],
    n_heads: int,
    segment: int,
    update: str,
    initial_gate: float,
    gate_lr: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    def f(t: Tensor) -> Tensor:
        return torch.where(t > 0, t + 1, torch.exp(torch.clamp(t, max=0)))

    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    number = [int(p) // segment for p in positions]
    order = sorted(set(number))
    gate = 1 / (1 + torch.exp(-weights["beta"]))

    def stored(head: int, until: int) -> tuple[Tensor, Tensor]:
        """M and z of all segments before segment ``until``."""
        width = q.shape[-1]
        matrix, z = x.new_zeros(width, width), x.new_zeros(width)
        for s in order:
            if s >= until:
                break
            own = [j for j in range(len(x)) if number[j] == s]
            values = []
            for j in own:
                old = matrix.T @ f(k[j, head]) / (f(k[j, head]) @ z) if update == "linear_delta" and z.any() else 0
                values.append(v[j, head] - old)
            for j, value in zip(own, values, strict=True):
                matrix = matrix + torch.outer(f(k[j, head]), value)
                z = z + f(k[j, head])
        return matrix, z

    outputs = []
    for i in range(len(x)):
        read = []
        for head in range(n_heads):
            scores = row(i, q[:, head], k[:, head], v[:, head], head)
            own = [j for j in range(i + 1) if number[j] == number[i]]
            weight = torch.softmax(torch.stack([scores[j] for j in own]), 0)
            local = sum(w * v[j, head] for w, j in zip(weight, own, strict=True))
            past = [j for j in range(i) if number[j] < number[i]]
            if not past:
                read.append(local)
                continue
            if update == "linear":
                kernel = torch.stack([f(q[i, head]) @ f(k[j, head]) for j in past])
                memory = sum(w * v[j, head] for w, j in zip(kernel / kernel.sum(), past, strict=True))
            else:
                matrix, z = stored(head, number[i])
                memory = matrix.T @ f(q[i, head]) / (f(q[i, head]) @ z)
            read.append(gate[head] * memory + (1 - gate[head]) * local)
        outputs.append(projected("output", torch.cat(read)))
    final = [stored(head, number[-1]) for head in range(n_heads)]
    return torch.stack(outputs), {
        "state.memory.M": torch.stack([m for m, _ in final]),
        "state.memory.z": torch.stack([z for _, z in final]),
    }
