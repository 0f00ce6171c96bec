"""Linear attention: the softmax replaced by a product of positive features, so that the past is one matrix.

Katharopoulos, Vyas, Pappas, Fleuret, "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
2020, arXiv 2006.16236. Per head, with ``f(x) = elu(x) + 1``, S and z zero at first:

    S_i = S_{i-1} + f(k_i) v_i^T,  z_i = z_{i-1} + f(k_i)       update first: a token reads itself
    o_i = f(q_i) S_i / (f(q_i) z_i)                             a mean of values with positive weights
    y   = W_o o

That is the recurrent form, and S, z are the state: it does not grow. Many tokens are read in chunks of C, with S and z
of the chunks before:

    num = tril(f(Q) f(K)^T) V + f(Q) S,   den = rowsum tril(f(Q) f(K)^T) + f(Q) z,   o = num / den

so that nothing of size time x time exists and cost is linear in time. The factor ``1 / sqrt(head_dim)`` would cancel
and is left out. The denominator holds the token's own ``f(q_i) f(k_i) > 0`` and needs no epsilon (the authors' code
adds 1e-6); it has a floor of 1e-30, which only underflow reaches. Sums are kept in float32 at least, because z grows
with length.

There are no scores, so an encoding that adds to them is refused. One that rotates turns the features, and only those
of the numerator, as RoFormer does (Su et al. 2021, arXiv 2104.09864, eq. 19): the denominator stays positive, and the
weights no longer sum to one. No single weight can be dropped either: dropout falls on what the heads read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, elu

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.precision import wide, without_autocast
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.position.rope import Rope

#: tokens in a chunk: its pairs then cost as much as its matrix
_CHUNK = 64
#: below it a denominator has underflowed, and so has what it divides
_FLOOR = 1e-30


@dataclass(frozen=True)
class LinearState(State):
    """The past of a row's last document, as sums over its tokens. Zero is a fresh start.

    Args:
        S: ``[batch, heads, head_dim, head_dim]``.
        z: ``[batch, heads, head_dim]``.
        document: the last token's, int64 ``[batch]``; None while no document was named.
    """

    S: Tensor
    z: Tensor
    document: Tensor | None = None


class Linear(MultiHead):
    """A token reads the mean of all values before it and its own, weighed by ``f(q) . f(k)``.

    Args:
        shape: the network's shape.
        position: the layer's encoding: one that adds to the input or rotates.

    Raises:
        ConfigurationError: for an encoding that acts on scores.
    """

    remembers = True
    footprint = "H dk (dv + 1)"

    def __init__(self, shape: LayerShape, position: PositionEncoding) -> None:
        super().__init__(shape, position)
        kind, name = type(position), type(position).__name__
        if (
            kind.position_bias is not PositionEncoding.position_bias
            or kind.content_bias is not PositionEncoding.content_bias
        ):
            raise ConfigurationError(
                f"position {name} acts on attention scores, and attention=linear has none; the closest choice is "
                "position=rope."
            )
        if isinstance(position, Rope) and position.magnitude() != 1:
            raise ConfigurationError(
                f"position {name} sharpens a softmax, and attention=linear has none; the closest choice is "
                "position=ntk."
            )
        self.rotates = kind.rotate is not PositionEncoding.rotate

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is a ``LinearState``."""
        before = state if isinstance(state, LinearState) else None
        q, new = self.project(x, context)
        spans, document = Spans.of(context, before)
        with without_autocast(x.device):
            # [batch, heads, time, head_dim]
            f_q, f_k, v = features(wide(q)), features(wide(new.k)), wide(new.v)
            if context.padding is not None:
                hidden = context.padding[:, None, :, None]
                f_k, v = f_k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)  # f(0) is 1
            batch, heads, _, width = v.shape
            s = v.new_zeros(batch, heads, width, width) if before is None else before.S
            z = (v.new_zeros(batch, heads, width) if before is None else before.z)[..., None]
            one = torch.ones_like(v[..., :1])  # f(k) summed is f(k) times one: z is a column beside those of S
            if self.rotates:
                turned_q, turned_k = self.position.rotate(f_q, f_k, context.positions, context.positions)
                num, s = causal_product(turned_q, turned_k, v, s, spans)
                den, z = causal_product(f_q, f_k, one, z, spans)
            else:
                both, sums = causal_product(f_q, f_k, torch.cat([v, one], -1), torch.cat([s, z], -1), spans)
                (num, den), (s, z) = both.split([width, 1], -1), sums.split([width, 1], -1)
            o = dropout(num / den.clamp(min=_FLOOR), self.dropped)
        return AttentionOutput(self.merge(o.to(q.dtype)), LinearState(s, z[..., 0], document))

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """``S`` and ``z``, in float32 at least, whatever the length."""
        width = self.shape.head_dim
        return batch * self.shape.n_heads * width * (width + 1) * torch.promote_types(dtype, torch.float32).itemsize


def features(x: Tensor) -> Tensor:
    """``f(x) = elu(x) + 1``, positive."""
    return elu(x) + 1


@dataclass(frozen=True)
class Spans:
    """Where the documents of a call lie in its chunks of ``length`` tokens.

    Args:
        length: C.
        same: which tokens of a chunk are of one document, bool ``[batch, 1, C, C]`` a chunk; None where all are.
        reads: which tokens go on with the document that the chunk before ended in, ``[batch, 1, C, 1]`` a chunk.
        writes: which tokens are of the document that the chunk ends in, ``[batch, 1, C, 1]`` a chunk.
        keeps: rows whose chunk ends in the document that the chunk before ended in, ``[batch, 1, 1, 1]`` a chunk.
    """

    length: int
    same: list[Tensor] | None = None
    reads: tuple[Tensor, ...] = ()
    writes: tuple[Tensor, ...] = ()
    keeps: tuple[Tensor, ...] = ()

    @staticmethod
    def of(context: Context, before: LinearState | None, length: int = _CHUNK) -> tuple[Spans, Tensor | None]:
        """The spans of the tokens of ``context``, and the document of each row's last token."""
        documents, document = context.documents, None if before is None else before.document
        if documents is None and document is None:
            return Spans(length), None
        documents = torch.zeros_like(context.positions) if documents is None else documents
        first = torch.zeros_like(documents[:, :1]) if document is None else document[:, None]
        documents = torch.cat([first, documents], 1)  # [batch, 1 + time]
        if context.padding is not None:
            # padding goes on with the document of the token before it
            places = torch.arange(1, documents.shape[1], device=documents.device)
            last = torch.where(context.padding, 0, places).cummax(1).values
            documents = documents.gather(1, torch.cat([torch.zeros_like(last[:, :1]), last], 1))
        chunks = documents[:, 1:].split(length, 1)
        ends = [documents[:, :1], *(chunk[:, -1:] for chunk in chunks)]
        return Spans(
            length,
            [(chunk[:, :, None] == chunk[:, None, :])[:, None] for chunk in chunks],
            tuple((chunk == end)[:, None, :, None] for chunk, end in zip(chunks, ends, strict=False)),
            tuple((chunk == end)[:, None, :, None] for chunk, end in zip(chunks, ends[1:], strict=True)),
            tuple((one == other)[:, None, :, None] for one, other in pairwise(ends)),
        ), documents[:, -1]


@torch.compiler.disable
def causal_product(q: Tensor, k: Tensor, v: Tensor, s: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """``o_i = q_i s_i`` with ``s_i = s_{i-1} + k_i v_i^T``, s zero at the start of a document.

    Args:
        q, k: ``[batch, heads, time, head_dim]``; k zero at padding.
        v: ``[batch, heads, time, width]``.
        s: of the tokens before, ``[batch, heads, head_dim, width]``.
        spans: the documents.

    Returns:
        o ``[batch, heads, time, width]``, and s after the last token.
    """
    o, last = _CausalProduct.apply(q, k, v, s, spans)
    return o, last


class _CausalProduct(torch.autograd.Function):
    """``causal_product``, chunk by chunk. With dO the gradient of o and T that of the S that a chunk leaves behind,

        A = tril(Q K^T),   O = A V + Q S,   S' = S + K^T V
        dA = tril(dO V^T),   dQ = dA K + dO S^T,   dK = dA^T Q + V T'^T,   dV = A^T dO + K T',   T = T' + Q^T dO

    where pairs, reads and writes across documents are zero. The backward pass runs from the last chunk to the first;
    every chunk's S is kept for it, and A is made again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, s: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
        parts = list(zip(*(tensor.split(spans.length, 2) for tensor in (q, k, v)), strict=True))
        outputs, found = [], []
        for c, (q_c, k_c, v_c) in enumerate(parts):
            found.append(s)
            o = torch.matmul(_pairs(q_c, k_c, spans, c), v_c)
            outputs.append(o.add_(torch.matmul(_masked(q_c, spans.reads, c), s)))
            s = _masked(s, spans.keeps, c) + torch.matmul(_masked(k_c, spans.writes, c).transpose(-1, -2), v_c)
        ctx.spans = spans
        ctx.save_for_backward(q, k, v, *found)
        return torch.cat(outputs, 2), s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor, d_s: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *found = ctx.saved_tensors
        spans: Spans = ctx.spans
        sums = [torch.empty_like(tensor) for tensor in (q, k, v)]
        parts = list(zip(*(tensor.split(spans.length, 2) for tensor in (q, k, v, d_o, *sums)), strict=True))
        t = d_s
        for c in reversed(range(len(parts))):
            q_c, k_c, v_c, d_o_c, d_q, d_k, d_v = parts[c]
            q_read, k_written = _masked(q_c, spans.reads, c), _masked(k_c, spans.writes, c)
            a, d_a = _pairs(q_c, k_c, spans, c), _pairs(d_o_c, v_c, spans, c)
            d_read = torch.matmul(d_o_c, found[c].transpose(-1, -2))
            d_written = torch.matmul(v_c, t.transpose(-1, -2))
            torch.add(torch.matmul(d_a, k_c), _masked(d_read, spans.reads, c), out=d_q)
            torch.add(torch.matmul(d_a.transpose(-1, -2), q_c), _masked(d_written, spans.writes, c), out=d_k)
            torch.add(torch.matmul(a.transpose(-1, -2), d_o_c), torch.matmul(k_written, t), out=d_v)
            t = _masked(t, spans.keeps, c) + torch.matmul(q_read.transpose(-1, -2), d_o_c)
        return *sums, t, None


def _pairs(q: Tensor, k: Tensor, spans: Spans, chunk: int) -> Tensor:
    """``tril(q k^t)`` within documents, ``[batch, heads, C, C]``."""
    a = torch.matmul(q, k.transpose(-1, -2)).tril_()
    return a if spans.same is None else a.masked_fill_(~spans.same[chunk], 0)


def _masked(tensor: Tensor, keep: tuple[Tensor, ...], chunk: int) -> Tensor:
    """``tensor`` where ``keep`` says so and zero elsewhere; as it is without documents."""
    return tensor.masked_fill(~keep[chunk], 0) if keep else tensor
