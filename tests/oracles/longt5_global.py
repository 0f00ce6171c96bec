"""LongT5's transient global attention, query by query.

T5's bucket of a block distance is found by asking the encoding for the bias of that distance, and looking it up in its
table.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CASES = [
    {"radius": 4, "block": 5},
    {"radius": 0, "block": 1, "scaled": "true"},
    {"radius": 6, "block": 3, "scaled": "true"},
]
DEGENERATE = {"radius": 1000, "block": 1000, "scaled": "true"}


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[..., Tensor],
    n_heads: int,
    radius: int,
    block: int,
    scaled: bool,
    ahead: bool = False,
) -> Tensor:
    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    time, head_dim = len(x), x.shape[-1] // n_heads
    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    if not scaled:
        q = q * head_dim**0.5
    place = [int(p) for p in positions]
    number = [p // block for p in place]
    if ahead:
        complete = [b for b in sorted(set(number)) if (b + 1) * block <= place[-1] + 1]
        number = [b if b in complete or not complete else complete[-1] for b in number]
        blocks = complete
    else:
        blocks = sorted(set(number))

    summaries = {}
    for b in blocks:
        s = sum(x[j] for j in range(time) if number[j] == b)
        g = s / torch.sqrt((s * s).mean() + 1e-6) * weights["summary_norm.weight"]
        summaries[b] = (g, projected("k", g).view(n_heads, -1), projected("v", g).view(n_heads, -1))

    outputs = []
    for i in range(time):
        near = [j for j in range(time if ahead else i + 1) if j != i and abs(place[i] - place[j]) <= radius]
        far = [b for b in blocks if ahead or b < number[i]]
        near = [*near, i]  # the query last, so that its row holds all others
        read = []
        for head in range(n_heads):
            last_q, last_k, last_v = (tensor[near, head] for tensor in (q, k, v))
            scores = row(len(near) - 1, last_q, last_k, last_v, head, x=x[near], positions=positions[near])
            values = last_v
            if far:
                of_x = torch.stack([*(summaries[b][0] for b in far), x[i]])
                of_k = torch.stack([*(summaries[b][1][head] for b in far), k[i, head]])
                of_v = torch.stack([*(summaries[b][2][head] for b in far), v[i, head]])
                of_q = q[i, head].expand_as(of_k)
                ends = torch.tensor([*((b + 1) * block - 1 for b in far), place[i]])
                if "of_blocks.table" in weights:
                    biases = []
                    for b in far:
                        apart = torch.tensor([b, number[i]])
                        asked = row(1, *[x.new_zeros(2, head_dim)] * 3, head, positions=apart)[0]
                        bucket = (weights["position.table"][head] - asked).abs().argmin()
                        biases.append(weights["of_blocks.table"][head, bucket])
                    of_far = of_k[:-1] @ q[i, head] / head_dim**0.5 + torch.stack(biases)
                else:
                    of_far = row(len(far), of_q, of_k, of_v, head, x=of_x, positions=ends)[:-1]
                scores, values = torch.cat([of_far, scores]), torch.cat([of_v[:-1], values])
            read.append(torch.softmax(scores, 0) @ values)
        outputs.append(projected("output", torch.cat(read)))
    return torch.stack(outputs)


def together(x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor, **options: object) -> Tensor:
    return forward(x, weights, positions, landmarks, ahead=True, **options)  # type: ignore[arg-type]
