"""Dilated attention as one softmax over a multiset: an integer for every query, head and key says how often it counts.

Pattern by pattern a key scores as it does among the kept keys alone. With ``detach_mixture`` each pattern is a softmax
of its own, and the mixture's weights are constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CASES = [
    {"segments": [8, 12], "dilations": [1, 2]},
    {"segments": [5, 11, 16], "dilations": [1, 3, 4]},
    {"segments": [6, 32], "dilations": [2, 5], "detach_mixture": True},
]
DEGENERATE = {"segments": [1000, 1000], "dilations": [1, 1]}


def forward(
    x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    return _read(x, weights, positions, together=False, **options)


def together(
    x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Every kept token sees all kept ones of its segment, the later ones too."""
    return _read(x, weights, positions, together=True, **options)


def _read(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    *,
    together: bool,
    row: Callable[..., Tensor],
    n_heads: int,
    segments: list[int],
    dilations: list[int],
    detach_mixture: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    place = [int(p) for p in positions]

    def kept(t: int, head: int, w: int, r: int) -> bool:
        return (place[t] % w) % r == head % r

    outputs = []
    for t in range(len(x)):
        read = []
        for head in range(n_heads):
            patterns = []  # (scores, values) of every pattern that keeps t
            for w, r in zip(segments, dilations, strict=True):
                if not kept(t, head, w, r):
                    continue
                others = range(len(x) if together else t)
                among = [j for j in others if j != t and place[j] // w == place[t] // w and kept(j, head, w, r)]
                among.append(t)
                scores = row(
                    len(among) - 1, q[among, head], k[among, head], v[among, head], head, x[among], positions[among]
                )
                patterns.append((scores, v[among, head]))
            if not patterns:
                read.append(torch.zeros_like(v[t, head]))
            elif not detach_mixture:
                scores, values = torch.cat([s for s, _ in patterns]), torch.cat([u for _, u in patterns])
                read.append(torch.softmax(scores, 0) @ values)
            else:
                mass = torch.stack([s.exp().sum() for s, _ in patterns]).detach()
                own = torch.stack([torch.softmax(s, 0) @ u for s, u in patterns])
                read.append(mass / mass.sum() @ own)
        outputs.append(projected("output", torch.cat(read)))

    state, number = {}, 0
    for w, r in zip(segments, dilations, strict=True):
        for offset in range(min(r, n_heads)):
            last = [t for t in range(len(x)) if kept(t, offset, w, r)]
            last = last[max(0, len(last) - (-(-w // r) - 1)) :]
            state[f"state.groups.{number}.k"] = k[last][:, offset::r].transpose(0, 1)
            state[f"state.groups.{number}.v"] = v[last][:, offset::r].transpose(0, 1)
            number += 1
    return torch.stack(outputs), state
