"""T5's bucketed bias: a learned number for every head and range of distances.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020,
arXiv 1910.10683. With B buckets and largest distance D, causal:

    bucket(n) = n                                                        n < B/2
                min(B - 1, B/2 + floor(ln(n / (B/2)) / ln(D / (B/2)) * B/2))   else
    score = c * s_ij + t[h, bucket(n)],  n = i - j

Half of the buckets hold one distance each, the other half ranges that widen logarithmically; the last is open-ended.
T5 itself does not scale its scores by c and learns to without; here scores are scaled as everywhere else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lcbench.errors import ConfigurationError
from lcbench.position.base import Alignment, LayerShape, PositionEncoding, spread


class T5(PositionEncoding):
    """A table of biases, drawn from a normal distribution of standard deviation ``d_model^-0.5``.

    Args:
        shape: the network's shape.
        buckets: B, ranges of distances; even (with ``two_sided``, a multiple of 4).
        max_distance: D, where the last bucket would begin if the logarithm were not rounded down.
        two_sided: half of the buckets for keys after the query, for attention that is not causal.
        shared: one table for all layers, as in T5, instead of one each.
    """

    def __init__(
        self,
        shape: LayerShape,
        *,
        buckets: int = 32,
        max_distance: int = 128,
        two_sided: bool = False,
        shared: bool = True,
    ) -> None:
        super().__init__(shape)
        unit = 4 if two_sided else 2
        if buckets < unit or buckets % unit:
            closest = max(unit, round(buckets / unit) * unit)
            raise ConfigurationError(f"position.buckets={buckets} is no multiple of {unit}; the closest is {closest}.")
        self.per_side = buckets // 2 if two_sided else buckets
        if max_distance <= self.per_side // 2:
            raise ConfigurationError(
                f"position.max_distance={max_distance} lies inside the buckets of single distances; the closest "
                f"choice is {self.per_side // 2 + 1}."
            )
        self.max_distance = max_distance
        self.two_sided = two_sided
        self.shared = shared
        self.table = nn.Parameter(torch.empty(shape.n_heads, buckets))
        nn.init.normal_(self.table, std=shape.d_model**-0.5)

    def share(self, first: PositionEncoding) -> None:
        if self.shared and isinstance(first, T5):
            self.table = first.table

    @property
    def reads_ahead(self) -> bool:
        return self.two_sided

    def bucket(self, distances: Tensor) -> Tensor:
        """The bucket of every distance, int64; without ``two_sided`` that of a negative distance is 0."""
        exact = self.per_side // 2
        n = distances.abs() if self.two_sided else distances.clamp(min=0)
        # a small excess keeps the powers on the right side of their bucket's edge
        ratio = torch.log(n.clamp(min=exact).double() / exact) / math.log(self.max_distance / exact)
        wide = (exact + (ratio * exact + 1e-9).long()).clamp(max=self.per_side - 1)
        found = torch.where(n < exact, n, wide)
        return found + self.per_side * (distances < 0) if self.two_sided else found

    def position_bias(self, alignment: Alignment) -> Tensor:
        """``[1 or batch, heads, q_time, k_time]``."""
        table = self.table[self.heads]
        if alignment.offset is None:
            return table[:, self.bucket(alignment.distances())].transpose(0, 1)
        by_distance = table.index_select(1, self.bucket(alignment.all_distances()))
        return spread(by_distance, alignment.q_positions.shape[1])[None]
