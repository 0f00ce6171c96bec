"""Focused Transformer, query by query: one softmax over a list of scores, those of local keys and those of the memory.

LongLLaMA's positions are built literally: for each query, its window's keys are numbered from the window's first
position, keys of the memory are all given that position's number, and the encoding scores the two lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

CASES = [
    {"segment": 8, "cache": 3, "memory_position": "first"},
    {"segment": 5, "retrieved": 4, "memory_position": "first", "temperature": "fixed"},
    {"segment": 6, "retrieved": 4, "cache": 2},
    {"segment": 6},
    {"segment": 6, "cache": 5, "memory_layers": []},
]
DEGENERATE = {"segment": 5, "temperature": "fixed"}

Row = Callable[[int, Tensor, Tensor, Tensor, int], Tensor]


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Row,
    n_heads: int,
    segment: int,
    cache: int,
    memory_layers: list[int] | None,
    retrieved: int | None,
    memory_position: str,
    temperature: str,
    initial_scale: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    remembers = memory_layers is None
    q, k, v = heads(x, weights, n_heads, remembers and temperature == "learned")
    outputs = []
    for i in range(len(x)):
        first = int(positions[i]) // segment * segment - cache
        near = [j for j in range(i + 1) if int(positions[j]) >= first]
        far = [j for j in range(i + 1) if int(positions[j]) < first] if remembers else []
        read = []
        for head in range(n_heads):
            if remembers and memory_position == "none":
                local = {j: q[i, head] @ k[j, head] / math.sqrt(q.shape[-1]) for j in near}
                memory = {j: q[i, head] @ k[j, head] / math.sqrt(q.shape[-1]) for j in far}
            else:
                with numbered_from(first, positions) if remembers else nullcontext():
                    scores = row(i, q[:, head], k[:, head], v[:, head], head)
                local = {j: scores[j] for j in near}
                memory = {j: scores[j] for j in far}
            best = sorted(far, key=lambda j: memory[j].item(), reverse=True)[:retrieved]
            total = {**local, **{j: memory[j] for j in best}}
            weight = torch.softmax(torch.stack(list(total.values())), 0)
            read.append(sum(w * v[j, head] for w, j in zip(weight, total, strict=True)))
        outputs.append(projected(weights, "output", torch.cat(read)))
    kept = slice(None) if remembers else slice(max(0, len(x) - (segment - 1 + cache)), None)
    return torch.stack(outputs), {"state.k": k[kept].transpose(0, 1), "state.v": v[kept].transpose(0, 1)}


@contextmanager
def numbered_from(first: int, positions: Tensor) -> Iterator[None]:
    """What the encoding takes for positions: those within the window, and that of its first token for all before."""
    true = positions.clone()
    positions.sub_(first).clamp_(min=0)
    yield
    positions.copy_(true)


def heads(x: Tensor, weights: dict[str, Tensor], n_heads: int, cosines: bool) -> list[Tensor]:
    """Queries, keys and values, each ``[time, heads, head_dim]``; a score is ``q . k / sqrt(head_dim)``."""
    q, k, v = (torch.stack([projected(weights, name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    if cosines:
        q, k = (t / torch.sqrt((t * t).sum(-1, keepdim=True) + 1e-6) for t in (q, k))
        q = q * torch.exp(weights["log_scale"])[:, None] * math.sqrt(q.shape[-1])
    return [q, k, v]


def crossbatch(
    rows: Tensor, weights: dict[str, Tensor], n_heads: int, segment: int, numbers: Sequence[tuple[int, int]]
) -> Tensor:
    """Cross-batch training without positions: outputs ``[batch, time, d_model]`` of ``rows``, of the same shape.

    A query reads, in one softmax, its window up to itself, ``n_pos`` windows before it in its own row, and the window
    before it in each of the next ``n_neg`` rows.
    """
    made = [heads(x, weights, n_heads, "log_scale" in weights) for x in rows]
    outputs = []
    for b in range(len(rows)):
        n_pos, n_neg = numbers[b]
        for i in range(rows.shape[1]):
            window = i // segment
            read = [(b, j) for j in range(i + 1) if j // segment >= window - n_pos]
            for n in range(1, n_neg + 1):
                other = (b + n) % len(rows)
                read += [(other, j) for j in range(rows.shape[1]) if j // segment == window - 1]
            o = []
            for head in range(n_heads):
                q = made[b][0][i, head]
                scores = torch.stack([q @ made[r][1][j, head] / math.sqrt(len(q)) for r, j in read])
                weight = torch.softmax(scores, 0)
                o.append(sum(w * made[r][2][j, head] for w, (r, j) in zip(weight, read, strict=True)))
            outputs.append(projected(weights, "output", torch.cat(o)))
    return torch.stack(outputs).view_as(rows)


def projected(weights: dict[str, Tensor], name: str, token: Tensor) -> Tensor:
    return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]
