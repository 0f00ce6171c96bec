"""Sliding window, query by query: softmax over the keys at positions i - window < j <= i."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CASES = [{"window": 2}, {"window": 5}, {"window": 16}]
DEGENERATE = {"window": 1000}


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[[int, Tensor, Tensor, Tensor, int], Tensor],
    n_heads: int,
    window: int,
) -> Tensor:
    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    outputs = []
    for i in range(len(x)):
        seen = [j for j in range(i + 1) if int(positions[i]) - int(positions[j]) < window]
        read = []
        for head in range(n_heads):
            scores = row(i, q[:, head], k[:, head], v[:, head], head)
            weight = torch.softmax(torch.stack([scores[j] for j in seen]), 0)
            read.append(sum(w * v[j, head] for w, j in zip(weight, seen, strict=True)))
        outputs.append(projected("output", torch.cat(read)))
    return torch.stack(outputs)
