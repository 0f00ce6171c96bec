"""T5: c q_i . k_j + t[head, bucket(n)], causal (keys after the query have buckets of their own, if two_sided)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def row(
    i: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor,
    positions: Tensor,
    weights: dict[str, Tensor],
    *,
    head: int,
    n_heads: int,
    buckets: int,
    max_distance: int,
    two_sided: bool,
    shared: bool,
) -> Tensor:
    per_side = buckets // 2 if two_sided else buckets
    exact = per_side // 2
    scores = []
    for j in range(i + 1):
        n = int(positions[i] - positions[j])
        other_side, n = two_sided and n < 0, abs(n)
        bucket = n
        if n >= exact:
            # the bucket starts where exact * (max_distance / exact) ** (steps / exact) <= n, in exact integers
            steps = 0
            while n**exact >= exact ** (exact - steps - 1) * max_distance ** (steps + 1) and steps + 1 < exact:
                steps += 1
            bucket = exact + steps
        if other_side:
            bucket += per_side
        scores.append(q[i] @ k[j] / math.sqrt(q.shape[-1]) + weights["table"][head, bucket])
    return torch.stack(scores)
