"""Relative positions with a cap: every distance beyond the table counts as its last.

The variant of Shaw et al. 2018 (arXiv 1803.02155) that the CoPE paper (arXiv 2405.18719) calls capped:

    score = c * (s_ij + q_i . e[min(n, R - 1)]),  n = i - j

With R no smaller than the longest sequence it equals ``relative``.
"""

from __future__ import annotations

from torch import Tensor

from lcbench.position.relative import Relative


class RelativeCapped(Relative):
    """``Relative``, with the vector of the largest distance for all that are larger."""

    def beyond(self, values: Tensor, distances: Tensor) -> Tensor:
        return values
