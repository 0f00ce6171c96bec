"""Memorizing Transformer, query by query and head by head: sort all keys of the memory, take the best, weigh them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

CASES = [
    {"segment": 8, "cache": 4, "memory": 14, "retrieved": 5},
    {"segment": 5, "cache": 5, "memory": 10, "retrieved": 3, "overlap": True, "initial_gate": 0.8},
    {"segment": 6, "cache": 0, "memory": 1000, "retrieved": 1000},
    {"segment": 6, "cache": 5, "memory_layers": []},
]
DEGENERATE = {"segment": 1000, "memory_layers": []}


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[[int, Tensor, Tensor, Tensor, int], Tensor],
    n_heads: int,
    segment: int,
    cache: int,
    memory: int,
    retrieved: int,
    memory_layers: list[int] | None,
    overlap: bool,
    search: str,
    initial_gate: float,
    gate_lr: float | None,
    initial_scale: float,
) -> Tensor:
    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    def normalised(t: Tensor) -> Tensor:
        return t / torch.sqrt((t * t).sum(-1, keepdim=True) + 1e-6)

    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    remembers = memory_layers is None
    if remembers:
        scale = torch.exp(weights["log_scale"])
        q = normalised(q) * scale[:, None] * math.sqrt(q.shape[-1])
        k = normalised(k)
    outputs = []
    for i in range(len(x)):
        start = int(positions[i]) // segment * segment
        seen = [j for j in range(i + 1) if int(positions[j]) >= start - cache]
        first, last = (start - memory, start) if overlap else (start - cache - memory, start - cache)
        stored = [j for j in range(i) if first <= int(positions[j]) < last]
        read = []
        for head in range(n_heads):
            scores = row(i, q[:, head], k[:, head], v[:, head], head)
            weight = torch.softmax(torch.stack([scores[j] for j in seen]), 0)
            local = sum(w * v[j, head] for w, j in zip(weight, seen, strict=True))
            if not (remembers and stored):
                read.append(local)
                continue
            constant_k, constant_v = k[:, head].detach(), v[:, head].detach()
            product = {j: q[i, head] @ constant_k[j] / math.sqrt(q.shape[-1]) for j in stored}
            best = sorted(stored, key=lambda j: product[j].item(), reverse=True)[:retrieved]
            weight = torch.softmax(torch.stack([product[j] for j in best]), 0)
            recalled = sum(w * constant_v[j] for w, j in zip(weight, best, strict=True))
            gate = 1 / (1 + torch.exp(-weights["beta"][head]))
            read.append(gate * recalled + (1 - gate) * local)
        outputs.append(projected("output", torch.cat(read)))
    return torch.stack(outputs)
