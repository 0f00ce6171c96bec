"""Relative positions: a learned vector for every distance, compared with the query.

Shaw, Uszkoreit, Vaswani, "Self-Attention with Relative Position Representations", 2018, arXiv 1803.02155, in the form
of the CoPE paper's baseline (arXiv 2405.18719): causal, for keys only, one table for all layers and heads.

    score = c * (s_ij + q_i . e[n]),  n = i - j,  e in R^{R x head_dim}

A key R or further away gets 0 for its distance and stays visible.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lcbench.position.base import Alignment, LayerShape, PositionEncoding, shift


class Relative(PositionEncoding):
    """A table of distances, drawn from a normal distribution of standard deviation ``head_dim^-0.5``.

    Args:
        shape: the network's shape.
        context: R, length of a training example: distances 0 .. R - 1 have a vector.
    """

    reads_scores = False

    def __init__(self, shape: LayerShape, *, context: int) -> None:
        super().__init__(shape)
        self.table = nn.Parameter(torch.empty(context, shape.head_dim))
        nn.init.normal_(self.table, std=shape.head_dim**-0.5)

    def share(self, first: PositionEncoding) -> None:
        if isinstance(first, Relative):
            self.table = first.table

    def beyond(self, values: Tensor, distances: Tensor) -> Tensor:
        """``values`` were read from the table at ``min(n, R - 1)``; make them right for ``distances`` from R on."""
        return values.masked_fill(distances >= len(self.table), 0)

    def distance_vectors(self, distances: Tensor) -> Tensor:
        """e[n], ``[1, distances, head_dim]``."""
        rows = self.table.index_select(0, distances.clamp(0, len(self.table) - 1))
        return self.beyond(rows, distances[:, None])[None]

    def content_bias(
        self,
        q: Tensor,
        k: Tensor,
        scores: Tensor,
        features: Tensor | None,
        alignment: Alignment,
        visible: Tensor,
    ) -> Tensor:
        q = q * q.shape[-1] ** -0.5
        if alignment.vectors is not None:
            return shift(torch.matmul(q, alignment.vectors[0].to(q.dtype).T))
        logits = torch.matmul(q, self.table.to(q.dtype).T)  # [batch, heads, q_time, R]
        distances = alignment.distances()[:, None]  # [1 or batch, 1, q_time, k_time]
        nearest = distances.clamp(0, len(self.table) - 1).expand(*q.shape[:2], -1, -1)
        return self.beyond(logits.gather(-1, nearest), distances)
