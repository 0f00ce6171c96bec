"""LongT5's local attention: every token reads those at most r positions away.

Guo, Ainslie, Uthus, Ontanon, Ni, Sung, Yang, "LongT5: Efficient Text-To-Text Transformer for Long Sequences", 2022,
arXiv 2112.07916. In an encoder, whose tokens are read both ways:

    S = q k^T + what the encoding adds;  S_ij = -inf unless |i - j| <= r;  y = W_o softmax(S) v

and in a decoder j <= i as well. r = 127 in the paper; T5's encoding is ``position=t5``, in an encoder with
``position.two_sided=true``.

T5 has no factor ``c = 1 / sqrt(head_dim)``: it is folded into W_q, which begins smaller by c. Every score here is
scaled by c (that is the encodings' scale too), so the layer undoes it: queries are multiplied by ``sqrt(head_dim)``,
and W_q begins as in T5. A checkpoint's W_q is then used as it is. What an encoding makes of the query (rotations,
vectors of distances) is unscaled with it; a bias of distances alone, as T5's, is added as it is. ``scaled`` gives the
scores of all other mechanisms instead: with it and r >= N - 1 this is full attention with the same weights.

Cost is linear in time, and the state is the last r keys and values.
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


class LongT5Local(MultiHead):
    """Every token reads those at most ``radius`` positions before it, and after it where it reads both ways.

    Args:
        shape: the network's shape.
        position: the layer's encoding.
        radius: r.
        scaled: scores are ``c q.k`` as elsewhere, and not T5's ``q.k``.

    Raises:
        ConfigurationError: for a negative radius; where it reads both ways, for an encoding that reads backwards only.
    """

    reads_together = True
    footprint = "H (dk + dv) r"

    def __init__(
        self, shape: LayerShape, position: PositionEncoding, *, radius: Length = 127, scaled: bool = False
    ) -> None:
        super().__init__(shape, position)
        if radius < 0:
            raise ConfigurationError(f"attention.radius={radius} is no distance; the least is attention.radius=0.")
        self.radius = radius
        self.scaled = scaled
        if not scaled:
            with torch.no_grad():
                for parameter in self.q.parameters():
                    parameter.mul_(shape.head_dim**-0.5)

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, KeyValues]:
        """See ``MultiHead.project``; queries are multiplied by what scoring will divide them by."""
        q, keys = super().project(x, context)
        return q if self.scaled else q * self.shape.head_dim**0.5, keys

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is the ``KeyValues`` of the last tokens before."""
        q, keys = self.project(x, context)
        if isinstance(state, KeyValues):
            keys = state.append(keys)
        causal, reach = not self.both_ways(context), Window(self.radius + 1)
        o = attend(q, context, keys, self.position, causal=causal, reach=reach, dropout=self.dropped)
        return AttentionOutput(self.merge(o), keys.recent(self.radius))

    def looks(self, x: Tensor, context: Context) -> Looks:
        """See ``Attention.looks``."""
        q, keys = self.project(x, context)
        return looks(q, context, keys, self.position, reach=Window(self.radius + 1))

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values and features of the last r tokens, and their positions."""
        return batch * min(length, self.radius) * self.key_bytes(dtype.itemsize)
