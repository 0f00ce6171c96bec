"""LongT5's local attention, query by query: scores without 1 / sqrt(head_dim), keys at most ``radius`` away."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CASES = [{"radius": 4}, {"radius": 9, "scaled": "true"}, {"radius": 1}]
DEGENERATE = {"radius": 1000, "scaled": "true"}


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[..., Tensor],
    n_heads: int,
    radius: int,
    scaled: bool,
    ahead: bool = False,
) -> Tensor:
    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    if not scaled:
        q = q * q.shape[-1] ** 0.5
    outputs = []
    for i in range(len(x)):
        seen = [j for j in range(len(x) if ahead else i + 1) if abs(int(positions[i]) - int(positions[j])) <= radius]
        # the query last, so that its row holds all others
        order = [*(j for j in seen if j != i), i]
        read = []
        for head in range(n_heads):
            last_q, last_k, last_v = (tensor[order, head] for tensor in (q, k, v))
            scores = row(len(order) - 1, last_q, last_k, last_v, head, x=x[order], positions=positions[order])
            read.append(torch.softmax(scores, 0) @ last_v)
        outputs.append(projected("output", torch.cat(read)))
    return torch.stack(outputs)


def together(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    **options: object,
) -> Tensor:
    return forward(x, weights, positions, landmarks, ahead=True, **options)  # type: ignore[arg-type]
