"""Full causal attention: every token reads every token before it and itself.

    S = q k^T / sqrt(head_dim);  S_ij = -inf for j > i;  y = W_o softmax(S) v

Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762. Exact, and quadratic in time; the state is the
key-value cache and grows with every token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lcbench.attention.base import AttentionOutput, Context, Looks, Run, State
from lcbench.attention.cache import KeyValues
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.scoring import attend, looks


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

    def read_runs(self, x: Tensor, context: Context, runs: Sequence[Run], state: State | None) -> AttentionOutput:
        """See ``Attention.read_runs``: all at once, then what sees both ways again, with the keys up to its end."""
        q, keys = self.project(x, context)
        if isinstance(state, KeyValues):
            keys = state.append(keys)
        o = attend(q, context, keys, self.position, dropout=self.dropped)
        lengths = [run.length for run in runs]
        outputs, before, stop = list(o.split(lengths, 2)), keys.length - x.shape[1], 0
        for number, (run, some) in enumerate(zip(runs, q.split(lengths, 2), strict=True)):
            start, stop = stop, stop + run.length
            if run.together:
                own = context.map(lambda tensor, piece=slice(start, stop): tensor[:, piece])  # type: ignore[misc]
                seen = keys.until(before + stop)
                outputs[number] = attend(some, own, seen, self.position, causal=False, dropout=self.dropped)
        return AttentionOutput(self.merge(torch.cat(outputs, 2)), keys)

    def looks(self, x: Tensor, context: Context) -> Looks:
        """See ``Attention.looks``."""
        q, keys = self.project(x, context)
        return looks(q, context, keys, self.position)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values and features of every token, and its position."""
        return batch * length * self.key_bytes(dtype.itemsize)
