"""Sparse Transformer, token by token and head by head: the sets of keys are built from their definitions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CASES = [
    {"stride": 6, "summaries": 2},
    {"stride": 5, "pattern": "strided"},
    {"stride": 4, "summaries": 1, "integration": "multi_head"},
]
DEGENERATE = {"stride": 1000, "summaries": 32}


def sets(i: int, pattern: str, stride: int, summaries: int, kind: int) -> tuple[set[int], set[int]]:
    """A1 and A2 of the query at position i; ``kind``: which summaries its head reads."""
    past = range(i + 1)
    if pattern == "strided":
        return {j for j in past if j >= i - stride}, {j for j in past if (i - j) % stride == 0}
    last = stride - 1 - kind * summaries
    residues = {last - n for n in range(summaries)}
    return {j for j in past if j // stride == i // stride}, {j for j in past if j % stride in residues}


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[..., Tensor],
    n_heads: int,
    pattern: str,
    stride: int,
    summaries: int,
    integration: str,
    layer: int = 0,
) -> Tensor:
    p = [int(position) for position in positions]

    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    outputs = []
    for i in range(len(x)):
        read = []
        for head in range(n_heads):
            # every other head reads summaries, or all do
            number = head // 2 if integration == "multi_head" else head
            near, far = sets(p[i], pattern, stride, summaries, number % (stride // summaries or 1))
            if integration == "merged":
                seen = near | far
            else:
                second = (layer if integration == "interleaved" else head) % 2 == 1
                seen = far | {p[i]} if second else near
            order = [j for j in range(i + 1) if p[j] in seen]
            at = (tensor[order, head] for tensor in (q, k, v))
            last_q, last_k, last_v = at
            scores = row(len(order) - 1, last_q, last_k, last_v, head, x=x[order], positions=positions[order])
            read.append(torch.softmax(scores, 0) @ last_v)
        outputs.append(projected("output", torch.cat(read)))
    return torch.stack(outputs)
