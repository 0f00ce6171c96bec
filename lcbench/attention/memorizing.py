"""Memorizing Transformer: local attention, and beside it attention to the nearest of many stored keys.

Wu, Rabe, Hutchins, Szegedy, "Memorizing Transformers", 2022, arXiv 2203.08913. A document is cut into segments of N
positions. Every layer reads its segment up to the query, and the X positions before the segment (the XL cache). A
memory layer also looks for keys further back, among the M positions before those. There, per head, with queries and
keys of length one and a learned positive scale s in place of ``1 / sqrt(dk)``:

    Vc = softmax(s q . k + bias) v                     over the segment and the cache, causal
    Vm = softmax(s q . k) v                            over the n keys of the memory with the largest q . k
    Va = g Vm + (1 - g) Vc,  g = sigmoid(beta)         one scalar beta a head

Each head and each query retrieves keys of its own. The position encoding acts on Vc alone. Where a query has no memory
yet, Va is Vc: that is the released code's result without its fault of letting empty slots into the softmax, which
shrinks the start of every document by ``1 - g``.

The memory is first in, first out, and said here by positions: what a query may retrieve lies at positions from
``a - X - M`` up to ``a - X``, where a is the start of its segment. So a token can be retrieved once its segment is
over and has left the cache, never by its own segment. With ``overlap`` the memory holds what the cache holds, too
(positions ``a - M`` up to ``a``), as in the released code; then the segment before counts twice.

No gradient enters the memory: q learns from Vm, the maps into keys and values only from Vc. Within one call all keys
are made by the same weights; across calls they are as old as their call.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.cache import KeyValues
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.nearest import Approximate, Exact, load_faiss
from lcbench.attention.precision import wide, without_autocast
from lcbench.attention.reach import Segment
from lcbench.attention.retrieval import Past, cosine, layers_with_memory, read, retrieve
from lcbench.attention.scoring import attend
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.units import Length


class Memorizing(MultiHead):
    """Local attention with an XL cache; in some layers a memory of single keys and values, too.

    Args:
        shape: the network's shape.
        position: the layer's encoding, of the local attention.
        segment: N, positions in a segment.
        cache: X, positions before the segment that local attention reads; 0 or as many as the segment in the paper.
        memory: M, positions whose keys a memory layer holds; 1,536 to 262,144 in the paper. What lies closer than the
            memory's size gives the same result with any larger memory.
        retrieved: n, keys a query retrieves; 32 in the paper.
        memory_layers: which layers have a memory, from 0; null for one, three quarters up (the paper's 9th of 12).
        overlap: whether the memory holds what the cache holds, too.
        search: exact, or faiss for a large memory: an approximate index made for each call, which pays where calls are
            long; needs lcbench[faiss].
        initial_gate: g at the start, between 0 and 1.
        gate_lr: learning rate of beta; null for the optimizer's.
        initial_scale: s at the start, positive. The released code starts at 1, which is nearly uniform attention; a
            well-known other implementation at 20.

    Raises:
        ConfigurationError: for sizes that hold nothing, a layer that is not there, a gate that is shut or open for
            good, or faiss where it is not installed.
    """

    remembers = True
    footprint = "H (dk + dv) (Mem + X + L - 1)"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        segment: Length = 64,
        cache: Length = 64,
        memory: Length = 8192,
        retrieved: int = 32,
        memory_layers: list[int] | None = None,
        overlap: bool = False,
        search: Literal["exact", "faiss"] = "exact",
        initial_gate: float = 0.5,
        gate_lr: float | None = 0.01,
        initial_scale: float = 10.0,
    ) -> None:
        super().__init__(shape, position)
        for key, value, least in (("segment", segment, 1), ("cache", cache, 0), ("memory", memory, 0)):
            if value < least:
                raise ConfigurationError(
                    f"attention.{key}={value} is no number of positions; the least is attention.{key}={least}."
                )
        if retrieved < 1:
            raise ConfigurationError(f"attention.retrieved={retrieved} reads nothing; the least is 1.")
        if not 0 < initial_gate < 1:
            closest = 0.01 if initial_gate <= 0 else 0.99
            raise ConfigurationError(
                f"attention.initial_gate={initial_gate} leaves no way to learn; it must lie between 0 and 1, "
                f"such as {closest}."
            )
        if not initial_scale > 0:
            raise ConfigurationError(f"attention.initial_scale={initial_scale} must be positive, such as 10.")
        if search == "faiss":
            load_faiss()
        self.segment: int = segment
        self.local = Segment(segment, cache)
        self.remembers = shape.layer in layers_with_memory(shape, memory_layers)
        # a memory holds positions start - since up to, not including, start - until
        self.since, self.until = (memory, 0) if overlap else (memory + cache, cache)
        self.retrieved = retrieved
        self.search = Approximate if search == "faiss" else Exact
        if self.remembers:
            self.beta = nn.Parameter(torch.full((shape.n_heads,), math.log(initial_gate / (1 - initial_gate))))
            self.log_scale = nn.Parameter(torch.full((shape.n_heads,), math.log(initial_scale)))
            if gate_lr is not None:
                self.own_group = {"beta": {"lr": gate_lr, "weight_decay": 0.0}}

    @property
    def kept(self) -> int:
        """Tokens that a later query may see: those before its segment, and of the segment all but itself."""
        before = max(self.local.memory, self.since) if self.remembers else self.local.memory
        return self.local.length - 1 + before

    def compared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """In a memory layer scores are cosines times s."""
        return cosine(q, k, self.log_scale) if self.remembers else (q, k)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is the ``KeyValues`` of what was read before."""
        q, keys = self.project(x, context)
        if isinstance(state, KeyValues):
            keys = state.append(keys)
        a = attend(q, context, keys, self.position, reach=self.local, dropout=self.dropped)
        measures = {}
        if self.remembers and x.shape[1]:
            gate = torch.sigmoid(wide(self.beta))
            measures["gate"] = gate.detach()
            past = Past(context, keys, self.local.length)
            spans = list(past.spans(self.since, self.until))
            if any(span.width for span in spans):
                with without_autocast(x.device):
                    scaled = wide(q) * self.shape.head_dim**-0.5
                    k, v = (wide(t.detach()).contiguous() for t in (keys.k, keys.v))
                    found = retrieve(scaled, past, spans, self.search(k, keys.padding, self.retrieved))
                    from_memory, _ = read(scaled, k, v, found, self.dropped)
                    g = gate[:, None, None] * found.any  # [batch, heads, time, 1]
                    a = (g * from_memory + (1 - g) * wide(a)).to(a.dtype)
                measures["retrieval_distance"] = found.distance
        return AttentionOutput(self.merge(a), keys.recent(self.kept), measures=measures)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values and features of the last ``kept`` tokens, and their positions."""
        return batch * min(length, self.kept) * self.key_bytes(dtype.itemsize)
