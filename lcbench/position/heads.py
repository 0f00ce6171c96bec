"""An encoding as some of a layer's heads have it, for a layer whose heads do not all read the same keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lcbench.position.base import Alignment, PositionEncoding


def of_heads(position: PositionEncoding, heads: Sequence[int]) -> PositionEncoding:
    """``position`` for the heads numbered ``heads`` only, in that order; itself if they are all."""
    return position if list(heads) == list(range(position.shape.n_heads)) else _OfHeads(position, heads)


class _OfHeads(PositionEncoding):
    """Asks ``whole`` for the biases of all heads, and takes those of some.

    What an encoding reads of a head reaches it in that head's place; the places of all others hold zeros.
    """

    def __init__(self, whole: PositionEncoding, heads: Sequence[int]) -> None:
        super().__init__(whole.shape)
        self.whole = whole
        self.numbers = torch.tensor(heads, device="cpu")
        self.feature_width, self.pair_width = whole.feature_width, whole.pair_width
        self.train(whole.training)

    def rotate(self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole.rotate(q, k, q_positions, k_positions)

    def position_bias(self, alignment: Alignment) -> Tensor | None:
        bias = self.whole.position_bias(alignment)
        return bias if bias is None else self._taken(bias)

    def distance_vectors(self, distances: Tensor) -> Tensor | None:
        return self.whole.distance_vectors(distances)

    def reads_content(self, k_positions: Tensor) -> bool:
        return self.whole.reads_content(k_positions)

    def content_bias(
        self,
        q: Tensor,
        k: Tensor,
        scores: Tensor,
        features: Tensor | None,
        alignment: Alignment,
        visible: Tensor,
    ) -> Tensor:
        features = None if features is None else self._placed(features)
        read = (self._placed(q), self._placed(k), self._placed(scores), features)
        return self._taken(self.whole.content_bias(*read, alignment, visible))

    def _placed(self, tensor: Tensor) -> Tensor:
        """``[batch, some heads, ...]`` to ``[batch, heads, ...]``."""
        placed = tensor.new_zeros(len(tensor), self.shape.n_heads, *tensor.shape[2:])
        return placed.index_copy(1, self.numbers.to(tensor.device), tensor)

    def _taken(self, bias: Tensor) -> Tensor:
        """The other way; a bias that is the same for all heads stays."""
        return bias if bias.shape[1] == 1 else bias.index_select(1, self.numbers.to(bias.device))
