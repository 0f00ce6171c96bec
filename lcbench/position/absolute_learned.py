"""Learned absolute positions: a vector for every position, added to the token embeddings.

    x_p = token_p + t[p],  t in R^{max_length x d_model}

Gehring et al. 2017, arXiv 1705.03122; the baseline of the CoPE paper (arXiv 2405.18719). Nothing is known of positions
from ``max_length`` on: reading them is an error.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from lcbench.position.base import LayerShape, PositionEncoding


class AbsoluteLearned(PositionEncoding):
    """A table of position embeddings, drawn from a normal distribution of standard deviation ``d_model^-0.5``.

    Args:
        shape: the network's shape.
        max_length: rows of the table.
    """

    def __init__(self, shape: LayerShape, *, max_length: int) -> None:
        super().__init__(shape)
        self.max_length = max_length
        self.table = nn.Parameter(torch.empty(max_length, shape.d_model))
        nn.init.normal_(self.table, std=shape.d_model**-0.5)

    def share(self, first: PositionEncoding) -> None:
        if isinstance(first, AbsoluteLearned):
            self.table = first.table

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        try:
            return x + embedding(positions, self.table).to(x.dtype)
        except IndexError as error:
            raise IndexError(
                f"a position was read that the table of absolute_learned lacks: it holds max_length={self.max_length}"
            ) from error
