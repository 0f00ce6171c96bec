"""Full causal attention: every token reads every token before it and itself.

    S = q k^T / sqrt(head_dim);  S_ij = -inf for j > i;  y = W_o softmax(S) v

Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762. Exact, and quadratic in time; the state is the
key-value cache and grows with every token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.cache import KeyValues
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.scoring import attend


class Full(MultiHead):
    """Every token reads its whole past.

    Args:
        shape: the network's shape.
        position: the layer's encoding.
    """

    reads_together = True
    footprint = "H (dk + dv) T"

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is the ``KeyValues`` of what was read before."""
        q, keys = self.project(x, context)
        if isinstance(state, KeyValues):
            keys = state.append(keys)
        causal = not self.both_ways(context)
        o = attend(q, context, keys, self.position, causal=causal, dropout=self.dropped)
        return AttentionOutput(self.merge(o), keys)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values and features of every token, and its position."""
        return batch * length * self.key_bytes(dtype.itemsize)
