"""What is counted for each place of a fact that was to be found."""

from __future__ import annotations

import torch
from torch import Tensor

#: upper ends of the depths that are counted together, in percent
_DEPTHS = (20, 40, 60, 80, 101)


def by_place(errors: Tensor, depth: Tensor, distance: Tensor) -> dict[str, Tensor]:
    """``errors`` ``[any]`` split by the fact's depth (fifths) and distance from the question (0, 1, 2-3, 4-7, ...).

    Args:
        errors: bool, one an answer.
        depth: percent, of the same shape.
        distance: tokens between the fact and the question, int64, of the same shape.
    """
    split = {}
    low = 0
    for high in _DEPTHS:
        split[f"error/depth_{low}_{high - 1}"] = errors[(depth >= low) & (depth < high)]
        low = high
    powers = 2 ** torch.arange(62, device=distance.device)
    bins = torch.bucketize(distance.contiguous(), powers, right=True)  # b for 2^(b-1) .. 2^b - 1
    for b in bins.unique().tolist():
        name = str(b) if b < 2 else f"{2 ** (b - 1)}_{2**b - 1}"
        split[f"error/distance_{name}"] = errors[bins == b]
    return {name: part for name, part in split.items() if len(part)}
