"""Landmark attention, query by query: tokens are put into the groups of the definition, each group gets its softmax.

With k (evaluation), the blocks closed before a query's window are cut down to those it chooses, and placed in slots.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CASES = [
    {"block": 5},
    {"block": 5, "k": 1, "window": 9},
    {"block": 6, "k": 2, "window": 7, "retrieval": "per_token"},
    {"block": 5, "k": 2, "window": 8, "stingy": False},
]


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[..., Tensor],
    n_heads: int,
    k: int | None,
    window: int,
    block: int,
    retrieval: str,
    stingy: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    # [time, heads, head_dim]
    queries, keys, values = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    time = len(x)
    number, blocks = [], 0  # of a token's block
    for j in range(time):
        number.append(blocks)
        blocks += bool(landmarks[j])
    closing = [j for j in range(time) if bool(landmarks[j])]  # the landmark of block n
    members = [[j for j in range(time) if number[j] == n and not bool(landmarks[j])] for n in range(blocks + 1)]

    def scored(i: int, head: int, places: Tensor | None = None) -> Tensor:
        return row(
            i,
            queries[:, head],
            keys[:, head],
            values[:, head],
            head,
            positions=positions if places is None else places,
        )

    def grouped(i: int, head: int, seen: list[int], places: Tensor | None) -> Tensor:
        """What query i reads of its own block and of the blocks ``seen``, ``[head_dim]``."""
        scores = scored(i, head, places)
        own = [j for j in members[number[i]] if j <= i]
        seen = [n for n in seen if members[n]]
        top = own + [closing[n] for n in seen]
        if not top:
            return torch.zeros_like(values[i, head])
        share = dict(zip(top, torch.softmax(scores[top], 0), strict=True))
        read = sum((share[j] * values[j, head] for j in own), torch.zeros_like(values[i, head]))
        for n in seen:
            inside = torch.softmax(scores[members[n]], 0)
            for weight, j in zip(inside, members[n], strict=True):
                read = read + share[closing[n]] * weight * values[j, head]
        return read

    def choose(i: int, closed: list[int], origin: int) -> list[list[int]]:
        """Of the blocks ``closed``, those that each head chooses; a block without tokens is not chosen."""
        assert k is not None
        filled, likings = [n for n in closed if members[n]], []
        for head in range(n_heads):
            places = torch.zeros_like(positions) if stingy else positions
            if stingy:
                for order, n in enumerate(closed):
                    slot = max(0, order - len(closed) + k + 1)
                    places[closing[n]] = slot * (block + 1) + block
                places[i] = (k + 1) * (block + 1) + int(positions[i]) - origin
            likings.append(scored(i, head, places)[[closing[n] for n in filled]])
        if retrieval == "per_token":
            best = torch.stack([torch.softmax(liking, 0) for liking in likings]).amax(0)
            likings = [best] * n_heads
        return [sorted(filled[int(c)] for c in liking.argsort(descending=True)[:k]) for liking in likings]

    outputs = []
    for i in range(time):
        if k is None:
            read = [grouped(i, head, list(range(number[i])), None) for head in range(n_heads)]
            outputs.append(projected("output", torch.cat(read)))
            continue
        begin = next(j for j in range(time) if int(positions[j]) // window == int(positions[i]) // window)
        local = number[begin]
        origin = int(positions[number.index(local)])
        closed = list(range(local))
        read = []
        chosen = choose(i, closed, origin) if closed else [[]] * n_heads
        for head in range(n_heads):
            places = torch.zeros_like(positions) if stingy else positions
            if stingy:
                slots = {}
                old = [n for n in chosen[head] if n < local - k]
                recent = [n for n in chosen[head] if n >= local - k]
                slots |= {n: order for order, n in enumerate(old)}
                slots |= {n: k - order for order, n in enumerate(reversed(recent))}
                for n, slot in slots.items():
                    end = slot * (block + 1) + block
                    places[closing[n]] = end
                    for back, j in enumerate(reversed(members[n])):
                        places[j] = end - 1 - back
                for j in range(time):
                    if number[j] >= local:
                        places[j] = (k + 1) * (block + 1) + int(positions[j]) - origin
            read.append(grouped(i, head, chosen[head] + list(range(local, number[i])), places))
        outputs.append(projected("output", torch.cat(read)))
    return torch.stack(outputs), {"state.k": keys.transpose(0, 1), "state.v": values.transpose(0, 1)}
