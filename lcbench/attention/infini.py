"""Infini-attention: causal attention inside a segment, and a matrix that holds all segments before.

Munkhdalai, Faruqui, Gopal, "Leave No Context Behind: Efficient Infinite Context Transformers with Infini-attention",
2024, arXiv 2404.07143. A document is cut into segments of N positions. Per head, with ``f(x) = elu(x) + 1`` and the
state ``M [dk, dv]``, ``z [dk]`` of all finished segments, zero at first:

    A_dot = softmax(Q' K'^T / sqrt(dk)) V                            inside the segment, causal (eq. 1)
    A_mem = f(Q) M / (f(Q) z)                                        from the segments before (eq. 3)
    A     = g A_mem + (1 - g) A_dot,  g = sigmoid(beta)              one scalar beta a head (eq. 6)
    M    <- M + f(K)^T V                                             linear update (eq. 4)
    M    <- M + f(K)^T (V - f(K) M / (f(K) z))                       linear + delta (eq. 5)
    z    <- z + sum_t f(K_t)

Only the local copies Q', K' carry positions: what is stored must not depend on where it was read. A segment is stored
when the next one begins, so no query reads its own segment twice. In a document's first segment there is no memory,
and A is A_dot alone: one segment is plain causal attention. Before anything is stored, the delta rule subtracts
nothing.

The gradient flows through M and z over all segments that are read without a detached state. They are kept in float32
at least, because z grows with length. With the delta rule it matters where segments are cut; with the linear one not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.cache import KeyValues
from lcbench.attention.linear import features
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.precision import wide, without_autocast
from lcbench.attention.reach import Segment
from lcbench.attention.scoring import attend
from lcbench.attention.segments import Reached, Segments, where
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.units import Length


@dataclass(frozen=True)
class Memory(State):
    """What was written, as sums over tokens.

    Args:
        M: ``[batch, heads, head_dim, head_dim]``.
        z: ``[batch, heads, head_dim]``.
    """

    M: Tensor
    z: Tensor

    def plus(self, other: Memory) -> Memory:
        return Memory(self.M + other.M, self.z + other.z)

    def cleared(self, rows: bool | Tensor) -> Memory:
        """Zero in ``rows``."""
        return Memory(where(rows, torch.zeros_like(self.M), self.M), where(rows, torch.zeros_like(self.z), self.z))

    def read(self, features: Tensor) -> Tensor:
        """``f(Q) M / (f(Q) z)`` of features ``[batch, heads, time, head_dim]``; zero where nothing is stored."""
        normaliser = torch.matmul(features, self.z[..., None])  # [batch, heads, time, 1]
        return torch.matmul(features, self.M) / normaliser.masked_fill(normaliser == 0, 1)


@dataclass(frozen=True)
class InfiniState(State):
    """
    Args:
        local: keys and values of the unfinished segment, and some before it, which are not seen again.
        memory: all finished segments of the row's document.
        unfinished: what the unfinished segment will add to it.
        reached: the last token read.
    """

    local: KeyValues
    memory: Memory
    unfinished: Memory
    reached: Reached


class Infini(MultiHead):
    """Local attention and a compressive memory in one layer.

    Args:
        shape: the network's shape.
        position: the layer's encoding, of the local attention.
        segment: N, positions in a segment; 2048 in the paper.
        update: how a segment is written: added (linear), or only what the memory does not already say (linear_delta).
        initial_gate: g at the start, between 0 and 1.
        gate_lr: learning rate of beta; null for the optimizer's. With a language model's usual rate the gates hardly
            move.

    Raises:
        ConfigurationError: for a segment without positions, or a gate that is shut or open for good.
    """

    remembers = True
    footprint = "2 H dk (dv + 1) + H (dk + dv) (N - 1)"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        segment: Length = 64,
        update: Literal["linear", "linear_delta"] = "linear",
        initial_gate: float = 0.5,
        gate_lr: float | None = 0.01,
    ) -> None:
        super().__init__(shape, position)
        if segment < 1:
            raise ConfigurationError(f"attention.segment={segment} holds nothing; the least is attention.segment=1.")
        if not 0 < initial_gate < 1:
            closest = 0.01 if initial_gate <= 0 else 0.99
            raise ConfigurationError(
                f"attention.initial_gate={initial_gate} leaves no way to learn; it must lie between 0 and 1, "
                f"such as {closest}."
            )
        self.segment: int = segment
        self.delta = update == "linear_delta"
        self.beta = nn.Parameter(torch.full((shape.n_heads,), math.log(initial_gate / (1 - initial_gate))))
        if gate_lr is not None:
            self.own_group = {"beta": {"lr": gate_lr, "weight_decay": 0.0}}

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is an ``InfiniState``."""
        before = state if isinstance(state, InfiniState) else None
        q, new = self.project(x, context)
        keys = new if before is None else before.local.append(new)
        local = attend(q, context, keys, self.position, reach=Segment(self.segment), dropout=self.dropped)

        segments = Segments(context, self.segment, before.reached if before else None)
        with without_autocast(x.device):
            # [batch, heads, width, head_dim] a piece
            q_parts, k_parts, v_parts = (segments.split(wide(t)) for t in (q, new.k, new.v))
            memory, unfinished = (before.memory, before.unfinished) if before else (self._empty(q_parts[0]),) * 2
            retrieved, weight = [], []
            for piece, q_s, k_s, v_s in zip(segments.pieces, q_parts, k_parts, v_parts, strict=True):
                memory = where_memory(piece.opens, memory.plus(unfinished), memory).cleared(piece.clears)
                unfinished = unfinished.cleared(piece.opens)
                written = memory.z.any(-1)[..., None, None]  # [batch, heads, 1, 1]
                retrieved.append(memory.read(features(q_s)))
                weight.append(written.expand(*q_s.shape[:3], 1).to(q_s.dtype))
                unfinished = unfinished.plus(self._written(memory, features(k_s), v_s, piece.padding))
            gate = torch.sigmoid(wide(self.beta))
            g = gate[:, None, None] * segments.join(weight)  # [batch, heads, time, 1]
            a = g * segments.join(retrieved) + (1 - g) * wide(local)
        reached = InfiniState(keys.recent(self.segment - 1), memory, unfinished, segments.reached)
        return AttentionOutput(self.merge(a.to(local.dtype)), reached, measures={"gate": gate.detach()})

    def _empty(self, q: Tensor) -> Memory:
        batch, heads, _, width = q.shape
        return Memory(q.new_zeros(batch, heads, width, width), q.new_zeros(batch, heads, width))

    def _written(self, memory: Memory, k: Tensor, v: Tensor, padding: Tensor | None) -> Memory:
        """What features ``k`` of keys and values ``v``, both ``[batch, heads, time, head_dim]``, add to the sums."""
        if padding is not None:
            k = k.masked_fill(padding[:, None, :, None], 0)  # f(0) is 1
        if self.delta:
            v = v - memory.read(k)
        return Memory(torch.matmul(k.transpose(-1, -2), v), k.sum(-2))

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """The last ``segment - 1`` tokens; ``M`` and ``z`` twice, in float32 at least; the last token's facts."""
        width = self.shape.head_dim
        itemsize = torch.promote_types(dtype, torch.float32).itemsize
        sums = 2 * self.shape.n_heads * width * (width + 1) * itemsize
        return batch * (min(length, self.segment - 1) * self.key_bytes(dtype.itemsize) + sums + 9)


def where_memory(rows: bool | Tensor, yes: Memory, no: Memory) -> Memory:
    return Memory(where(rows, yes.M, no.M), where(rows, yes.z, no.z))
