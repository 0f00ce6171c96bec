"""Transformer-XL.

The encoding: c ((q_i + u) . k_j + (q_i + w) . W_R r_n), in evaluation mode. The mechanism, query by query: softmax
over its own segment up to itself and the M positions before the segment; with "same length", over the last M.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

CASES = [
    {"segment": 8, "memory": 8},
    {"segment": 5, "memory": 0},
    {"segment": 4, "memory": 9, "same_length": "true"},
]
#: a memory that holds everything, whatever the segment
DEGENERATE = {"segment": 4, "memory": 1000}


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


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[[int, Tensor, Tensor, Tensor, int], Tensor],
    n_heads: int,
    segment: int,
    memory: int | None,
    same_length: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    memory = segment if memory is None else memory
    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    outputs = []
    for i in range(len(x)):
        here = int(positions[i])
        first = here - memory + 1 if same_length else here // segment * segment - memory
        seen = [j for j in range(i + 1) if int(positions[j]) >= first]
        read = []
        for head in range(n_heads):
            scores = row(i, q[:, head], k[:, head], v[:, head], head)
            weight = torch.softmax(torch.stack([scores[j] for j in seen]), 0)
            read.append(sum(w * v[j, head] for w, j in zip(weight, seen, strict=True)))
        outputs.append(projected("output", torch.cat(read)))
    kept = memory - 1 if same_length else memory + segment - 1
    return torch.stack(outputs), {"state.hidden": x[max(0, len(x) - kept) :]}
