"""Longformer, token by token and head by head: the set of keys is built from its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CASES = [{"window": 4, "dilation": "[3,1]", "global_tokens": 2}, {"window": "[5]", "dilation": "[[2,2]]"}]
DEGENERATE = {"window": 1000}


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[..., Tensor],
    n_heads: int,
    window: int | list[int],
    dilation: Any,
    global_tokens: int,
    ahead: bool = False,
) -> Tensor:
    w = window if isinstance(window, int) else window[0]
    d = [dilation] * n_heads if isinstance(dilation, int) else dilation
    d = d[0] if isinstance(d[0], list) else d
    time, p = len(x), [int(position) for position in positions]

    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    def heads_of(names: list[str]) -> list[Tensor]:
        # [time, heads, head_dim]
        return [torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in names]

    local = heads_of(["q", "k", "v"])
    own = heads_of(["global_q", "global_k", "global_v"]) if global_tokens else local
    outputs = []
    for i in range(time):
        read = []
        for head in range(n_heads):
            if ahead:
                near = {p[i] + m * d[head] for m in range(-(w // 2), w // 2 + 1)}
            else:
                near = {p[i] - m * d[head] for m in range(w)}
            is_global = p[i] < global_tokens
            seen = [j for j in range(time) if is_global or p[j] in near or p[j] < global_tokens]
            # the query last, so that its row holds all others
            order = [*(j for j in seen if j != i and (ahead or j < i)), i]
            q, k, v = (tensor[order, head] for tensor in (own if is_global else local))
            scores = row(len(order) - 1, q, k, v, head, x=x[order], positions=positions[order])
            read.append(torch.softmax(scores, 0) @ v)
        outputs.append(projected("output", torch.cat(read)))
    return torch.stack(outputs)


def together(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    **options: Any,
) -> Tensor:
    return forward(x, weights, positions, landmarks, ahead=True, **options)
