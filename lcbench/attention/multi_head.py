"""What mechanisms with heads share: the maps into queries, keys and values, and the map back."""

from __future__ import annotations

from torch import Tensor, nn

from lcbench.attention.base import Attention, Context
from lcbench.attention.cache import KeyValues
from lcbench.position.base import LayerShape, PositionEncoding


class MultiHead(Attention):
    """Attention by heads: ``q = W_q x``, ``k = W_k x``, ``v = W_v x``, and ``y = W_o o`` (Vaswani et al. 2017)."""

    def __init__(self, shape: LayerShape, position: PositionEncoding) -> None:
        super().__init__(shape, position)
        self.q = nn.Linear(shape.d_model, shape.d_model, bias=shape.bias)
        self.k = nn.Linear(shape.d_model, shape.d_model, bias=shape.bias)
        self.v = nn.Linear(shape.d_model, shape.d_model, bias=shape.bias)
        self.output = shape.into_residual(nn.Linear(shape.d_model, shape.d_model, bias=shape.bias))

    @property
    def dropped(self) -> float:
        """Probability of dropping an attention weight now."""
        return self.shape.dropout if self.training else 0.0

    def split(self, x: Tensor) -> Tensor:
        """``[batch, time, d_model]`` to ``[batch, heads, time, head_dim]``."""
        return x.unflatten(-1, (self.shape.n_heads, self.shape.head_dim)).transpose(1, 2)

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, KeyValues]:
        """Queries ``[batch, heads, time, head_dim]``, and keys and values, of ``x`` ``[batch, time, d_model]``."""
        q, k, v = (self.split(project(x)) for project in (self.q, self.k, self.v))
        q, k = self.compared(q, k)
        return q, KeyValues.of(k, v, self.position.key_features(x, k, v), context)

    def compared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """What scores are products of, made of queries and keys ``[batch, heads, time, head_dim]``."""
        return q, k

    def merge(self, o: Tensor) -> Tensor:
        """What the heads read, ``[batch, heads, time, head_dim]``, to ``[batch, time, d_model]``."""
        return self.output(o.transpose(1, 2).flatten(2))

    def key_bytes(self, itemsize: int) -> int:
        """Bytes of one token's keys, values and features, activations of ``itemsize``, and its position (int64)."""
        per_head = 2 * self.shape.head_dim + self.position.feature_width
        return self.shape.n_heads * per_head * itemsize + 8
