"""Compressive Transformer, query by query: softmax over the slots, the memory and the own segment up to itself.

A slot is made of the tokens at ``rate`` positions, whichever of them there are; it stands one place before the next
slot, the last one right before the memory. "Most used" goes through segments one after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CASES = [
    {"segment": 6, "memory": 6, "compressed_memory": 5, "rate": 3},
    {"segment": 4, "memory": 8, "compressed_memory": 4, "rate": 2, "compression": "mean"},
    {"segment": 4, "memory": 4, "compressed_memory": 4, "rate": 2, "compression": "most_used"},
]
#: a memory that nothing leaves
DEGENERATE = {"segment": 4, "memory": 80, "compressed_memory": 4, "rate": 2}


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[..., Tensor],
    n_heads: int,
    segment: int,
    memory: int | None,
    compressed_memory: int,
    rate: int,
    compression: str,
    reconstruction: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    memory = segment if memory is None else memory
    places = [int(p) for p in positions]

    def projected(token: Tensor) -> list[Tensor]:
        """What is read of a token or a slot: itself, and q, k and v, each ``[heads, head_dim]``."""
        y = [weights[f"{name}.weight"] @ token + weights[f"{name}.bias"] for name in "qkv"]
        return [token, *(part.unflatten(0, (n_heads, -1)) for part in y)]

    def pooled(tokens: dict[int, Tensor]) -> Tensor:
        """A slot of the tokens at some of ``rate`` places."""
        if compression == "mean":
            return sum(tokens.values()) / len(tokens)  # type: ignore[return-value]
        if compression == "max":
            return torch.stack(list(tokens.values())).max(0).values
        weight = weights["compressor.map.weight"].unflatten(1, (rate, -1))  # [d_model, rate, d_model]
        return sum((weight[:, p] @ token for p, token in tokens.items()), weights["compressor.map.bias"])  # type: ignore[arg-type]

    read = [projected(token) for token in x]
    slots: dict[int, list[Tensor]] = {}  # by number: how many slots of the document come before

    def attention(i: int) -> tuple[Tensor, Tensor, list[int], int]:
        """Of query i: weights ``[heads, seen]``, values ``[seen, heads, head_dim]``, places, how many are slots."""
        start = places[i] // segment * segment - memory
        next_slot = start // segment * (segment // rate)
        numbers = [n for n in range(next_slot - compressed_memory, next_slot) if n in slots]
        tokens = [j for j in range(i + 1) if places[j] >= start]
        at = [start + n - next_slot for n in numbers] + [places[j] for j in tokens]
        inputs, q, k, v = (
            torch.stack(p) for p in zip(*[slots[n] for n in numbers], *[read[j] for j in tokens], strict=True)
        )
        last = len(at) - 1
        scores = [row(last, q[:, h], k[:, h], v[:, h], h, inputs, torch.tensor(at)) for h in range(n_heads)]
        return torch.softmax(torch.stack(scores), 1), v, at, len(numbers)

    def evict(window: int) -> None:
        """The slots of positions ``window * segment`` on, which leave the memory of a segment that is over."""
        first = window * segment
        inside = [j for j in range(len(x)) if first <= places[j] < first + segment]
        count = segment // rate
        if compression != "most_used":
            for group in range(count):
                tokens = {places[j] - first - group * rate: x[j] for j in inside}
                tokens = {place: token for place, token in tokens.items() if 0 <= place < rate}
                if tokens:
                    slots[window * count + group] = projected(pooled(tokens))
            return
        used = dict.fromkeys(inside, 0.0)
        for i in range(len(x)):
            if places[i] // segment == window + memory // segment:
                weight, _, at, skipped = attention(i)
                for j in inside:
                    used[j] += float(weight[:, at.index(places[j], skipped)].detach().sum())
        best = sorted(sorted(used, key=lambda j: (-used[j], j))[:count])
        # places that hold nothing are chosen last, the first ones first, and keep their order among the others
        empty = [p for p in range(first, first + segment) if p not in {places[j] for j in inside}]
        chosen = sorted([places[j] for j in best] + empty[: count - len(best)])
        for n, place in enumerate(chosen):
            if place in {places[j] for j in best}:
                slots[window * count + n] = read[places.index(place)]

    outputs = []
    begun = places[0] // segment
    for i in range(len(x)):
        while begun < places[i] // segment:
            if begun >= memory // segment:
                evict(begun - memory // segment)
            begun += 1
        weight, v, _, _ = attention(i)
        o = torch.cat([sum(w * v[j, h] for j, w in enumerate(weight[h])) for h in range(n_heads)])  # type: ignore[arg-type]
        outputs.append(weights["output.weight"] @ o + weights["output.bias"])
    if places[-1] % segment == segment - 1:  # the last segment is over
        if begun >= memory // segment:
            evict(begun - memory // segment)
        begun += 1
    next_slot = (begun - memory // segment) * (segment // rate)
    held = [
        slots[n][0] if n in slots else torch.zeros_like(x[0]) for n in range(next_slot - compressed_memory, next_slot)
    ]
    return torch.stack(outputs), {"state.compressed": torch.stack(held)}
