"""BigBird, query by query, from the sets of blocks that it reads.

The generator of the random blocks is written out once more, with Python's integers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CASES = [
    {"block": 3, "window": 3, "random": 2, "global_blocks": 2},
    {"block": 4, "window": 1, "random": 3, "global_blocks": 1, "seed": 5},
    {"block": 2, "window": 3, "random": 0, "global_blocks": 3},
    {"block": 2, "window": 1, "random": 2, "global_blocks": 0, "draw": "early"},
]
DEGENERATE = {"block": 4, "window": 1001}


def mixed(state: int, value: int) -> int:
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15 * (value + 1)) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def drawn(candidates: list[int], count: int, *numbers: int) -> set[int]:
    """``count`` of ``candidates``, without replacement."""
    left, chosen, state = list(candidates), set(), 0
    for number in numbers:
        state = mixed(state, number)
    for n in range(min(count, len(left))):
        chosen.add(left.pop(int((mixed(state, n) >> 11) / 2**53 * len(left))))
    return chosen


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[..., Tensor],
    n_heads: int,
    block: int,
    window: int,
    random: int,
    global_blocks: int,
    draw: str,
    seed: int,
    ahead: bool = False,
) -> Tensor:
    def projected(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    # [time, heads, head_dim]
    q, k, v = (torch.stack([projected(name, token).view(n_heads, -1) for token in x]) for name in "qkv")
    number = [int(p) // block for p in positions]
    total = number[-1] + 1
    early = 2 * random + 5 if draw == "early" else total

    def read_by(j: int, head: int) -> set[int]:
        """The blocks that block ``j`` reads."""
        if not ahead:
            near, everywhere = set(range(j - window + 1, j + 1)), set(range(global_blocks))
            candidates = [c for c in range(global_blocks, j - window + 1) if c < early]
        else:
            side, trailing = window // 2, global_blocks // 2
            everywhere = set(range(global_blocks - trailing)) | set(range(total - trailing, total))
            if j in everywhere:
                return set(range(total))
            near = set(range(j - side, j + side + 1))
            candidates = [c for c in range(total) if c not in near | everywhere and c < early]
        return near | everywhere | drawn(candidates, random, seed, 0, head, j)

    outputs = []
    for i in range(len(x)):
        read = []
        for head in range(n_heads):
            blocks = read_by(number[i], head)
            seen = [j for j in range(len(x) if ahead else i + 1) if j != i and number[j] in blocks]
            order = [*seen, i]  # the query last, so that its row holds all others
            last_q, last_k, last_v = (tensor[order, head] for tensor in (q, k, v))
            scores = row(len(order) - 1, last_q, last_k, last_v, head, x=x[order], positions=positions[order])
            read.append(torch.softmax(scores, 0) @ last_v)
        outputs.append(projected("output", torch.cat(read)))
    return torch.stack(outputs), {"state.k": k.transpose(0, 1), "state.v": v.transpose(0, 1)}


def together(x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor, **options: object) -> Tensor:
    return forward(x, weights, positions, landmarks, ahead=True, **options)[0]  # type: ignore[arg-type]
