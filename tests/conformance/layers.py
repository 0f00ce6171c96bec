"""Attention layers that obey every law, in the fewest lines: what the broken ones are made from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lcbench.attention.base import Attention, AttentionOutput, Context, State
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding


@dataclass(frozen=True)
class Past(State):
    """All tokens read. ``k``, ``v`` ``[batch, time, d_model]``; the others ``[batch, time]``."""

    k: Tensor
    v: Tensor
    positions: Tensor
    documents: Tensor
    hidden: Tensor

    def reset(self, rows: Tensor) -> Past:
        return dataclasses.replace(self, hidden=self.hidden | rows[:, None])


class Plain(Attention):
    """Softmax attention with one head and one T x T mask, biased by -0.1 per position of distance."""

    def __init__(self, shape: LayerShape, position: PositionEncoding) -> None:
        super().__init__(shape, position)
        self.q = nn.Linear(shape.d_model, shape.d_model)
        self.k = nn.Linear(shape.d_model, shape.d_model)
        self.v = nn.Linear(shape.d_model, shape.d_model)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        new = self.read(x, context)
        past = self.join(state, new) if isinstance(state, Past) else new
        return AttentionOutput(self.mix(x, new, past, self.visible(new, past)), past)

    def read(self, x: Tensor, context: Context) -> Past:
        zeros = torch.zeros_like(context.positions)
        documents = zeros if context.documents is None else context.documents
        hidden = zeros.bool() if context.padding is None else context.padding
        return Past(self.k(x), self.v(x), context.positions, documents, hidden)

    def join(self, old: Past, new: Past) -> Past:
        pairs = {f.name: (getattr(old, f.name), getattr(new, f.name)) for f in dataclasses.fields(Past)}
        return Past(**{name: torch.cat(pair, 1) for name, pair in pairs.items()})

    def visible(self, new: Past, past: Past) -> Tensor:
        """``[batch, q_time, k_time]``."""
        q_time, k_time = new.k.shape[1], past.k.shape[1]
        causal = torch.ones(q_time, k_time, dtype=torch.bool, device=new.k.device).tril(k_time - q_time)
        return causal & (new.documents[:, :, None] == past.documents[:, None]) & ~past.hidden[:, None]

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        scores = self.q(x).float() @ past.k.float().transpose(1, 2) / self.shape.d_model**0.5
        if x.dtype == torch.float64:
            scores = self.q(x) @ past.k.transpose(1, 2) / self.shape.d_model**0.5
        scores = scores - 0.1 * self.distances(new, past)
        weights = self.weigh(scores, visible)
        return self.dropout(weights.to(past.v.dtype)) @ past.v

    def distances(self, new: Past, past: Past) -> Tensor:
        return new.positions[:, :, None] - past.positions[:, None]

    def weigh(self, scores: Tensor, visible: Tensor) -> Tensor:
        """A row that sees nothing has weights zero."""
        return scores.masked_fill(~visible, -1e30).softmax(-1) * visible.any(-1, keepdim=True)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return batch * length * (2 * self.shape.d_model * dtype.itemsize + 8 + 8 + 1)


@dataclass(frozen=True)
class Sums(State):
    """``s`` ``[batch, d_model, d_model]``, ``z`` ``[batch, d_model]``, float32 at least; ``document`` ``[batch]``."""

    s: Tensor
    z: Tensor
    document: Tensor


class Linear(Plain):
    """Linear attention, token by token: a state of constant size that is cleared where a document starts."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        batch, time, width = x.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        q, k = (nn.functional.elu(project(x).to(dtype)) + 1 for project in (self.q, self.k))
        v = self.v(x).to(dtype)
        documents = torch.zeros_like(context.positions) if context.documents is None else context.documents
        if not isinstance(state, Sums):
            state = Sums(v.new_zeros(batch, width, width), v.new_zeros(batch, width), documents[:, 0])
        s, z, document, outputs = state.s, state.z, state.document, []
        for t in range(time):
            same = (documents[:, t] == document).to(dtype)[:, None]
            real = torch.ones_like(same) if context.padding is None else (~context.padding[:, t]).to(dtype)[:, None]
            s = s * same[:, :, None] + (k[:, t] * real)[:, :, None] * v[:, t][:, None]
            z = z * same + k[:, t] * real
            document = documents[:, t]
            outputs.append(torch.einsum("bd,bde->be", q[:, t], s) / ((q[:, t] * z).sum(-1, keepdim=True) + 1e-6))
        return AttentionOutput(torch.stack(outputs, 1).to(x.dtype), Sums(s, z, document))

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        itemsize = torch.promote_types(dtype, torch.float32).itemsize
        return batch * ((self.shape.d_model**2 + self.shape.d_model) * itemsize + 8)


class TwoWay(Plain):
    """An encoder's attention: reads both ways, carries nothing, refuses a state."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        if state is not None:
            raise ConfigurationError("attention=two_way reads both ways and takes no state; use a causal attention.")
        new = self.read(x, context)
        return AttentionOutput(self.mix(x, new, new, self.visible(new, new)), None)

    def visible(self, new: Past, past: Past) -> Tensor:
        return (new.documents[:, :, None] == past.documents[:, None]) & ~past.hidden[:, None]

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return 0
