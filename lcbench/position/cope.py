"""Contextual position encoding (CoPE): positions count what the head chooses to count.

Golovneva, Wang, Weston, Sukhbaatar, "Contextual Position Encoding: Learning to Count What's Important", 2024,
arXiv 2405.18719. For query i and key j:

    g_ij = sigmoid(c * s_ij),  0 where j > i or j is padding     gate: does key j advance the count?
    p_ij = min(g_ij + g_i,j+1 + ... + g_ii, P - 1)               position: what was counted from j to i
    z_i  = q_i e^T,  e in R^{P x head_dim}                       a logit for every integer position
    b_ij = (1 - w) z_i[floor p] + w z_i[floor p + 1],  w = p - floor p
    score = c * (s_ij + b_ij)

The count includes both j and i: gates that are all 1 give ``p = i - j + 1``. The table e is one per layer, shared by
its heads, and starts at zero, where CoPE equals no encoding. At an integer p, where b has a kink, the derivative is
that of the right-hand side.

A row needs only its cached keys, so there is no further state; under a sliding window p stays exact, since all keys
between j and i are visible too.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lcbench.errors import ConfigurationError
from lcbench.position.base import Alignment, Counts, LayerShape, PositionEncoding


class Cope(PositionEncoding):
    """Each head counts the tokens its gates select.

    Args:
        shape: the network's shape.
        context: length of a training example; sets ``p_max`` where that is None.
        p_max: P, rows of the table: positions beyond P - 1 are read as P - 1. None: ``context + 1``, which no
            training example exceeds.
        gates: what a query is compared with to decide whether a key counts: the ``keys`` of attention, a projection
            of its own (``separate_keys``, "sep-keys" in the paper), or the ``values`` ("val-gates").
        scaled_gates: gates are ``sigmoid(c * s)`` (the released code), else ``sigmoid(s)`` (the paper's text).
        scaled_bias: the score is ``c * (s + b)`` (the released code), else ``c * s + b`` (the paper's listing).
        shared: one table for all layers instead of one each.
        undersized: allow a table that is too small for the task's exact solution.
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
    ) -> None:
        super().__init__(shape)
        if p_max is None and context is None:
            raise ConfigurationError("position.p_max and position.context are both unset; one of them is needed.")
        self.p_max = p_max if p_max is not None else context + 1  # type: ignore[operator]
        if self.p_max < 1:
            raise ConfigurationError(f"position.p_max={p_max} leaves no position; the closest choice is 1.")
        self.undersized = undersized
        self.shared = shared
        self.gates = gates
        c = shape.head_dim**-0.5
        self._gate_scale = 1.0 if scaled_gates else 1 / c
        self._bias_scale = c if scaled_bias else 1.0
        self.gate_keys = nn.Linear(shape.d_model, shape.d_model, bias=shape.bias) if gates == "separate_keys" else None
        self.feature_width = 0 if gates == "keys" else shape.head_dim
        self.table = nn.Parameter(torch.zeros(self.p_max, shape.head_dim))

    def share(self, first: PositionEncoding) -> None:
        if self.shared and isinstance(first, Cope):
            self.table = first.table

    def key_features(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
        """What gates compare the query with, where that is not the key: ``[batch, heads, time, head_dim]``."""
        if self.gate_keys is not None:
            return self.gate_keys(x).unflatten(-1, (self.shape.n_heads, self.shape.head_dim)).transpose(1, 2)
        return v if self.gates == "values" else None

    def content_bias(
        self,
        q: Tensor,
        k: Tensor,
        scores: Tensor,
        features: Tensor | None,
        alignment: Alignment,
        visible: Tensor,
    ) -> Tensor:
        return self.count(q, self._compared(q, scores, features, visible))

    def counts(self, q: Tensor, k: Tensor, scores: Tensor, features: Tensor | None, visible: Tensor) -> Counts:
        return self.counted(self._compared(q, scores, features, visible))

    def _compared(self, q: Tensor, scores: Tensor, features: Tensor | None, visible: Tensor) -> Tensor:
        return scores if features is None else gate_product(q, features, scores.dtype, visible)

    def count(self, q: Tensor, compared: Tensor) -> Tensor:
        """b, scaled, where gates are sigmoids of ``compared``; both ``[batch, heads, q_time, k_time]``."""
        return _Counted.apply(self._gated(compared), q * self._bias_scale, self.table)

    def counted(self, compared: Tensor) -> Counts:
        """The gates and positions that ``count`` reads its bias off."""
        gates = self._gated(compared).sigmoid()
        return Counts(gates, positions_of(gates, self.p_max - 1))

    def _gated(self, compared: Tensor) -> Tensor:
        """What gates are the sigmoids of."""
        return compared if self._gate_scale == 1 else compared * self._gate_scale


def gate_product(q: Tensor, k: Tensor, dtype: torch.dtype, visible: Tensor) -> Tensor:
    """``c * q . k``, very negative where a pair is hidden: ``[batch, heads, q_time, k_time]``."""
    product = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)).to(dtype)
    return product.masked_fill(~visible, torch.finfo(dtype).min)


def positions_of(gates: Tensor, last: int) -> Tensor:
    """``p_ij``, counted from the right and at most ``last``, of gates ``[..., q_time, k_time]``."""
    counted = gates.cumsum(-1)
    position = torch.empty_like(gates)  # sum over keys j, j+1, ...: never negative, since ``counted`` never falls
    position[..., :1] = counted[..., -1:]
    torch.sub(counted[..., -1:], counted[..., :-1], out=position[..., 1:])
    if last < gates.shape[-1]:
        position.clamp_(max=last)
    return position


class _Counted(torch.autograd.Function):
    """``(t, q, table) -> b``: gates ``sigmoid(t)`` ``[..., q_time, k_time]``, counted from the right, read off
    ``z = q table^T`` by interpolation; ``q`` ``[..., q_time, head_dim]``, ``table`` ``[P, head_dim]``.

    Written by hand to make few passes over memory. Only rows of the table that a count reaches are compared with the
    queries. In the backward pass position p_j passes its gradient to the gates of all keys from j on, hence the
    running sum.
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor, q: Tensor, table: Tensor) -> Tensor:
        gates = t.sigmoid()
        last = len(table) - 1
        position = positions_of(gates, last)
        highest, whole = min(last, t.shape[-1]), position
        if t.untyped_storage().device.type == "cpu":  # not so for tensors without data, whose cost is being counted
            found = float(position[..., 0].max())  # the first key has the largest count of its row
            if math.isnan(found):  # let the loss be NaN, and say so, instead of failing at an index
                whole = position.nan_to_num()
            else:
                highest = int(found)
        else:
            whole = position.nan_to_num()
        floor = whole.long()
        w = position.frac_()

        rows = table[: highest + 2].to(q.dtype)
        if highest == last:  # the last row has itself as the next
            rows = torch.cat([rows, rows[-1:]])
        z = torch.matmul(q, rows.T).to(t.dtype)
        below = z[..., :-1].gather(-1, floor)
        slope = z[..., 1:].gather(-1, floor).sub_(below)
        ctx.save_for_backward(gates, floor, w, slope, q, table)
        ctx.rows = rows
        return torch.addcmul(below, w, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates, floor, w, slope, q, table = ctx.saved_tensors
        d_above = d_bias * w
        d_z = d_bias.new_zeros(*d_bias.shape[:-1], len(ctx.rows))
        d_z[..., 1:].scatter_add_(-1, floor, d_above)
        d_z[..., :-1].scatter_add_(-1, floor, d_bias - d_above)
        d_gates = (slope * d_bias).cumsum(-1)

        d_z = d_z.to(q.dtype)
        d_table = torch.zeros_like(table)
        d_rows = torch.matmul(d_z.flatten(0, -2).T, q.flatten(0, -2))[: len(table)]
        d_table[: len(d_rows)] = d_rows
        return torch.ops.aten.sigmoid_backward(d_gates, gates), torch.matmul(d_z, ctx.rows), d_table
