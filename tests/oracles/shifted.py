"""Shifted sparse attention: full attention where it is certified, in evaluation; ``trained`` is the grouped form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CASES = [{"group": 8}, {"length": 100}]
DEGENERATE = {"group": 8}


def forward(
    x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    return _read(x, weights, positions, grouped=False, **options)


def trained(
    x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same group, by the position shifted by half a group in the second half of the heads."""
    return _read(x, weights, positions, grouped=True, **options)


def _read(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    *,
    grouped: bool,
    row: Callable[[int, Tensor, Tensor, Tensor, int], Tensor],
    n_heads: int,
    length: int,
    group: int | None,
    form: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    outputs = []
    for i in range(len(x)):
        read = []
        for head in range(n_heads):
            seen = list(range(i + 1))
            if grouped:
                assert group is not None
                shift = group // 2 if head >= n_heads // 2 else 0
                number = [(int(p) + shift) // group for p in positions]
                seen = [j for j in seen if number[j] == number[i]]
            scores = row(i, q[:, head], k[:, head], v[:, head], head)
            weight = torch.softmax(torch.stack([scores[j] for j in seen]), 0)
            read.append(sum(w * v[j, head] for w, j in zip(weight, seen, strict=True)))
        outputs.append(projected("output", torch.cat(read)))
    kept = 0 if not grouped or group is None else max(0, len(x) - (group - 1))
    return torch.stack(outputs), {"state.k": k[kept:].transpose(0, 1), "state.v": v[kept:].transpose(0, 1)}
