"""Full causal attention: every token reads every token before it and itself.

    S = q k^T / sqrt(head_dim);  S_ij = -inf for j > i;  y = W_o softmax(S) v

Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762. Exact, and quadratic in time; the state is the
key-value cache and grows with every token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lcbench.attention.base import Attention, AttentionOutput, Context, State
from lcbench.attention.cache import KeyValues
from lcbench.attention.scoring import attend
from lcbench.position.base import LayerShape, PositionEncoding


class Full(Attention):
    """Every token reads its whole past.

    Args:
        shape: the network's shape.
        position: the layer's encoding.
    """

    def __init__(self, shape: LayerShape, position: PositionEncoding) -> None:
        super().__init__(shape, position)
        self.q = nn.Linear(shape.d_model, shape.d_model, bias=shape.bias)
        self.k = nn.Linear(shape.d_model, shape.d_model, bias=shape.bias)
        self.v = nn.Linear(shape.d_model, shape.d_model, bias=shape.bias)
        self.output = shape.into_residual(nn.Linear(shape.d_model, shape.d_model, bias=shape.bias))

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is the ``KeyValues`` of what was read before."""
        heads = (self.shape.n_heads, self.shape.head_dim)
        # [batch, time, d_model] -> [batch, heads, time, head_dim]
        q, k, v = (project(x).unflatten(-1, heads).transpose(1, 2) for project in (self.q, self.k, self.v))
        keys = KeyValues.of(k, v, self.position.key_features(x, k, v), context)
        if isinstance(state, KeyValues):
            keys = state.append(keys)
        dropout = self.shape.dropout if self.training else 0.0
        o = attend(q, context, keys, self.position, dropout=dropout)
        return AttentionOutput(self.output(o.transpose(1, 2).flatten(2)), keys)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values and features of every token, and its position (int64)."""
        per_head = 2 * self.shape.head_dim + self.position.feature_width
        return batch * length * (self.shape.n_heads * per_head * dtype.itemsize + 8)
