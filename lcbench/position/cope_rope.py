"""CoPE on top of RoPE: content is compared after rotation, counting is not.

Golovneva et al. 2024, arXiv 2405.18719, Section 5 (combination with relative encodings); Su et al. 2021,
arXiv 2104.09864. The paper's code does not say which queries and keys feed the gates; here they are those before
rotation, so that what counts does not depend on where it stands:

    g_ij = sigmoid(c * s_ij),  z_i = q_i e^T,  score = c * (q'_i . k'_j + b_ij)
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lcbench.position.base import Alignment, Counts, LayerShape, PositionEncoding
from lcbench.position.cope import Cope, gate_product
from lcbench.position.rope import Pairing, Rope


class CopeRope(PositionEncoding):
    """Rotated scores, with CoPE's bias counted from unrotated queries and keys.

    Args:
        shape: the network's shape.
        context, p_max, gates, scaled_gates, scaled_bias, shared, undersized: as in ``Cope``.
        base, pairing, channels: as in ``Rope``.
    """

    reads_between = True

    def __init__(
        self,
        shape: LayerShape,
        *,
        context: int | None = None,
        p_max: int | None = None,
        gates: Literal["keys", "separate_keys", "values"] = "keys",
        scaled_gates: bool = True,
        scaled_bias: bool = True,
        shared: bool = False,
        undersized: bool = False,
        base: float = 10000.0,
        pairing: Pairing = "interleaved",
        channels: int | None = None,
    ) -> None:
        super().__init__(shape)
        self.rope = Rope(shape, base=base, pairing=pairing, channels=channels)
        self.cope = Cope(
            shape,
            context=context,
            p_max=p_max,
            gates=gates,
            scaled_gates=scaled_gates,
            scaled_bias=scaled_bias,
            shared=shared,
            undersized=undersized,
        )
        self.p_max, self.undersized = self.cope.p_max, undersized
        self.feature_width = self.cope.feature_width

    def share(self, first: PositionEncoding) -> None:
        if isinstance(first, CopeRope):
            self.cope.share(first.cope)

    def rotate(self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.rope.rotate(q, k, q_positions, k_positions)

    def key_features(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
        return self.cope.key_features(x, k, v)

    def content_bias(
        self,
        q: Tensor,
        k: Tensor,
        scores: Tensor,
        features: Tensor | None,
        alignment: Alignment,
        visible: Tensor,
    ) -> Tensor:
        return self.cope.count(q, self._compared(q, k, scores, features, visible))

    def counts(self, q: Tensor, k: Tensor, scores: Tensor, features: Tensor | None, visible: Tensor) -> Counts:
        return self.cope.counted(self._compared(q, k, scores, features, visible))

    def _compared(self, q: Tensor, k: Tensor, scores: Tensor, features: Tensor | None, visible: Tensor) -> Tensor:
        return gate_product(q, k if features is None else features, scores.dtype, visible)
