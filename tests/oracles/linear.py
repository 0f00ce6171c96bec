"""Linear attention, query by query: explicit weights f(q).f(k_j) over all earlier tokens and itself."""

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
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    def f(t: Tensor) -> Tensor:
        return torch.where(t > 0, t + 1, torch.exp(torch.clamp(t, max=0)))

    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    root = q.shape[-1] ** 0.5
    outputs = []
    for i in range(len(x)):
        read = []
        for head in range(n_heads):
            # scores of features: what the encoding makes of them, undone the scale
            kernel = root * row(i, f(q[:, head]), f(k[:, head]), v[:, head], head)
            total = sum(f(q[i, head]) @ f(k[j, head]) for j in range(i + 1))
            read.append(sum(kernel[j] * v[j, head] for j in range(i + 1)) / total)
        outputs.append(projected("output", torch.cat(read)))
    return torch.stack(outputs), {"state.z": f(k).sum(0)}
