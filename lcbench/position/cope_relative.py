"""CoPE on top of relative positions.

Golovneva et al. 2024, arXiv 2405.18719, and its released code:

    score = c * (s_ij + q_i . r[n] + b_ij),  n = i - j

with gates from ``s_ij`` alone and r the table of ``relative``, shared by all layers. CoPE may be put into every K-th
layer only (layers K, 2K, ..., counted from 1); the others have relative positions alone.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lcbench.errors import ConfigurationError
from lcbench.position.base import Alignment, Counts, LayerShape, PositionEncoding
from lcbench.position.cope import Cope
from lcbench.position.relative import Relative


class CopeRelative(PositionEncoding):
    """Relative positions in every layer, counted ones in some.

    Args:
        shape: the network's shape.
        context: length of a training example: distances in the relative table, and ``p_max`` where that is None.
        every: K, which layers count.
        p_max, gates, scaled_gates, scaled_bias, undersized: as in ``Cope``.
    """

    def __init__(
        self,
        shape: LayerShape,
        *,
        context: int,
        every: int = 1,
        p_max: int | None = None,
        gates: Literal["keys", "separate_keys", "values"] = "keys",
        scaled_gates: bool = True,
        scaled_bias: bool = True,
        undersized: bool = False,
    ) -> None:
        super().__init__(shape)
        if every < 1:
            raise ConfigurationError(f"position.every={every} names no layer; the closest choice is 1.")
        self.relative = Relative(shape, context=context)
        self.cope: Cope | None = None
        self.p_max = context + 1 if p_max is None else p_max
        self.undersized = undersized
        if (shape.layer + 1) % every == 0:
            self.cope = Cope(
                shape,
                p_max=self.p_max,
                gates=gates,
                scaled_gates=scaled_gates,
                scaled_bias=scaled_bias,
                undersized=undersized,
            )
            self.feature_width = self.cope.feature_width
            self.reads_between = True

    def share(self, first: PositionEncoding) -> None:
        if isinstance(first, CopeRelative):
            self.relative.share(first.relative)

    def key_features(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
        return None if self.cope is None else self.cope.key_features(x, k, v)

    def distance_vectors(self, distances: Tensor) -> Tensor:
        return self.relative.distance_vectors(distances)

    def content_bias(
        self,
        q: Tensor,
        k: Tensor,
        scores: Tensor,
        features: Tensor | None,
        alignment: Alignment,
        visible: Tensor,
    ) -> Tensor:
        bias = self.relative.content_bias(q, k, scores, features, alignment, visible)
        if self.cope is None:
            return bias
        return bias + self.cope.content_bias(q, k, scores, features, alignment, visible)

    def counts(self, q: Tensor, k: Tensor, scores: Tensor, features: Tensor | None, visible: Tensor) -> Counts | None:
        return None if self.cope is None else self.cope.counts(q, k, scores, features, visible)
