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
    {"segment": 4, "memory": 4, "compressed_memory": 3, "rate": 2, "compression": "max"},
    {"segment": 4, "memory": 4, "compressed_memory": 4, "rate": 2, "compression": "most_used"},
    {"segment": 4, "memory": 4, "compressed_memory": 8, "rate": 2, "reconstruction": "auto_encoding"},
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

    def projected(name: str, tokens: Tensor) -> Tensor:
        """``[time, heads, head_dim]``"""
        y = torch.stack([weights[f"{name}.weight"] @ token + weights[f"{name}.bias"] for token in tokens])
        return y.unflatten(1, (n_heads, -1))

    def pooled(tokens: dict[int, Tensor]) -> Tensor:
        """A slot of the tokens at some of ``rate`` places."""
        if compression == "mean":
            return sum(tokens.values()) / len(tokens)  # type: ignore[return-value]
        if compression == "max":
            return torch.stack(list(tokens.values())).max(0).values
        weight = weights["compressor.map.weight"].unflatten(1, (rate, -1))  # [d_model, rate, d_model]
        return sum((weight[:, p] @ token for p, token in tokens.items()), weights["compressor.map.bias"])  # type: ignore[arg-type]

    slots: dict[int, Tensor] = {}  # by number: how many slots of the document come before

    def seen(i: int) -> tuple[Tensor, Tensor, int]:
        """What query i sees, with itself as the last: inputs, places, and how many of them are slots."""
        start = places[i] // segment * segment - memory
        next_slot = start // segment * (segment // rate)
        numbers = [n for n in range(next_slot - compressed_memory, next_slot) if n in slots]
        tokens = [j for j in range(i + 1) if places[j] >= start]
        inputs = torch.stack([slots[n] for n in numbers] + [x[j] for j in tokens])
        at = [start + n - next_slot for n in numbers] + [places[j] for j in tokens]
        return inputs, torch.tensor(at), len(numbers)

    def attention(i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weights ``[heads, seen]``, values ``[seen, heads, head_dim]`` and places ``[seen]`` of query i."""
        inputs, at, _ = seen(i)
        q, k, v = (projected(name, inputs) for name in "qkv")
        last = len(inputs) - 1
        scores = [row(last, q[:, h], k[:, h], v[:, h], h, inputs, at) for h in range(n_heads)]
        return torch.softmax(torch.stack(scores), 1), v, at

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
                    slots[window * count + group] = pooled(tokens)
            return
        used = dict.fromkeys(inside, 0.0)
        for i in range(len(x)):
            if places[i] // segment == window + memory // segment:
                weight, _, at = attention(i)
                skipped = seen(i)[2]
                for j in inside:
                    column = next(n for n in range(skipped, len(at)) if int(at[n]) == places[j])
                    used[j] += float(weight[:, column].sum())
        best = sorted(sorted(used, key=lambda j: (-used[j], j))[:count])
        # places that hold nothing are chosen last, the first ones first, and keep their order among the others
        empty = [p for p in range(first, first + segment) if p not in {places[j] for j in inside}]
        chosen = sorted([places[j] for j in best] + empty[: count - len(best)])
        for n, place in enumerate(chosen):
            if place in {places[j] for j in best}:
                slots[window * count + n] = x[places.index(place)]

    outputs = []
    begun = places[0] // segment
    for i in range(len(x)):
        while begun < places[i] // segment:
            if begun >= memory // segment:
                evict(begun - memory // segment)
            begun += 1
        weight, v, _ = attention(i)
        o = torch.cat([sum(w * v[j, h] for j, w in enumerate(weight[h])) for h in range(n_heads)])  # type: ignore[arg-type]
        outputs.append(weights["output.weight"] @ o + weights["output.bias"])
    next_slot = (begun - memory // segment) * (segment // rate)
    held = [slots.get(n, torch.zeros_like(x[0])) for n in range(next_slot - compressed_memory, next_slot)]
    return torch.stack(outputs), {"state.compressed": torch.stack(held)}
