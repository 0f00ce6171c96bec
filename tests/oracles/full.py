"""Full causal attention, query by query and head by head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[[int, Tensor, Tensor, Tensor, int], Tensor],
    n_heads: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    def projected(name: str, token: Tensor) -> Tensor:
        y = weights[f"{name}.weight"] @ token
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    outputs = []
    for i in range(len(x)):
        read = []
        for head in range(n_heads):
            scores = row(i, q[:, head], k[:, head], v[:, head], head)
            exponentials = [torch.exp(score - scores.max()) for score in scores]
            total = sum(exponentials)
            read.append(sum(e / total * v[j, head] for j, e in enumerate(exponentials)))
        outputs.append(projected("output", torch.cat(read)))
    return torch.stack(outputs), {"state.k": k.transpose(0, 1), "state.v": v.transpose(0, 1)}


def together(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[..., Tensor],
    n_heads: int,
) -> Tensor:
    """Every token reads all: each query in turn is the last of its sequence."""

    def projected(name: str, token: Tensor) -> Tensor:
        y = weights[f"{name}.weight"] @ token
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    outputs = []
    for i in range(len(x)):
        order = [*(j for j in range(len(x)) if j != i), i]
        read = []
        for head in range(n_heads):
            last_q, last_k, last_v = (tensor[order, head] for tensor in (q, k, v))
            scores = row(len(x) - 1, last_q, last_k, last_v, head, x=x[order], positions=positions[order])
            read.append(torch.softmax(scores, 0) @ last_v)
        outputs.append(projected("output", torch.cat(read)))
    return torch.stack(outputs)
