"""Sliding window: every token reads the last w tokens, itself included.

    S = q k^T / sqrt(head_dim);  S_ij = -inf unless i - w < j <= i;  y = W_o softmax(S) v

The causal form of the local band of Longformer (Beltagy, Peters, Cohan 2020, arXiv 2004.05150). Exactly w keys,
counted in positions. Cost is linear in time; through L layers a token is reached by ``L (w - 1) + 1`` positions. The
state is the last w - 1 keys and values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lcbench.attention.base import AttentionOutput, Context, Looks, State
from lcbench.attention.cache import KeyValues
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.reach import Window
from lcbench.attention.scoring import attend, looks
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.units import Length


class SlidingWindow(MultiHead):
    """Every token reads the last ``window`` tokens, itself included.

    Args:
        shape: the network's shape.
        position: the layer's encoding.
        window: w, keys a query sees.

    Raises:
        ConfigurationError: for a window that holds nothing.
    """

    footprint = "H (dk + dv) (w - 1)"

    def __init__(self, shape: LayerShape, position: PositionEncoding, *, window: Length = 128) -> None:
        super().__init__(shape, position)
        if window < 1:
            raise ConfigurationError(f"attention.window={window} sees nothing; the least is attention.window=1.")
        self.window = window

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is the ``KeyValues`` of the last tokens before."""
        q, keys = self.project(x, context)
        if isinstance(state, KeyValues):
            keys = state.append(keys)
        o = attend(q, context, keys, self.position, reach=Window(self.window), dropout=self.dropped)
        return AttentionOutput(self.merge(o), keys.recent(self.window - 1))

    def looks(self, x: Tensor, context: Context) -> Looks:
        """See ``Attention.looks``."""
        q, keys = self.project(x, context)
        return looks(q, context, keys, self.position, reach=Window(self.window))

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values and features of the last ``window - 1`` tokens, and their positions."""
        return batch * min(length, self.window - 1) * self.key_bytes(dtype.itemsize)
