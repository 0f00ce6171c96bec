"""The one scoring function: softmax attention for every mechanism and every position encoding.

    o_i = sum_j softmax_j(c * q'_i . k'_j + bias_ij) v_j        (Vaswani et al. 2017, arXiv 1706.03762)

q', k' are the rotated queries and keys, the bias is what the encoding adds. Two paths give the same numbers:

- fused: ``scaled_dot_product_attention``, wherever the bias needs positions only and nothing has to be learned in it;
- explicit: for a bias that reads queries, keys or scores, or is trained. Queries are taken in blocks, each block sees
  its whole row of keys, and the backward pass recomputes all blocks but a constant few, so that nothing of size
  ``q_time x k_time`` stays alive (as in Rabe and Staats 2021, arXiv 2112.05682).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues
from lcbench.position.base import Alignment, PositionEncoding

#: pairs of query and key that one block of the explicit path holds at a time: its tensors then fit a CPU's cache
_PAIRS = 2**19
#: pairs whose blocks are kept for the backward pass, about 24 bytes each: a constant, so memory stays linear in length
_KEPT_PAIRS = 2**20
#: queries in a block at least (matrix products need rows), and in a block of the fused path
_LEAST_ROWS, _FUSED_ROWS = 32, 256


def attend(
    q: Tensor,
    context: Context,
    keys: KeyValues,
    position: PositionEncoding,
    *,
    causal: bool = True,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention of ``q`` over ``keys``.

    Args:
        q: queries before rotation, ``[batch, heads, q_time, head_dim]``.
        context: describes the queries, ``[batch, q_time]``.
        keys: all keys, those of the queries included; the last query is aligned with the last key.
        position: the layer's encoding.
        causal: whether a query sees only keys up to its own place in the buffer.
        window: keys a query sees, its own included, counted back in the buffer (without ``causal``, forward too).
        dropout: probability of dropping an attention weight; 0 outside training.

    Returns:
        ``[batch, heads, q_time, head_dim]``; 0 where a query sees no key.
    """
    if causal and q.shape[2] > keys.length:
        raise ValueError(f"{q.shape[2]} queries are aligned with the end of only {keys.length} keys")
    if q.numel() == 0:
        return q
    pairs = _Pairs.of(context, keys, causal, window)
    rotated_q, rotated_k = position.rotate(q, keys.k, context.positions, keys.positions)
    reads_content = position.reads_content(keys.positions)
    has_bias = type(position).position_bias is not PositionEncoding.position_bias
    learns_bias = has_bias and torch.is_grad_enabled() and any(p.requires_grad for p in position.parameters())
    if reads_content or learns_bias or (dropout > 0 and q.device.type == "cpu"):
        seed = int(torch.randint(2**62, (), device="cpu")) if dropout > 0 else 0
        run = _Run(pairs, position, reads_content, has_bias, dropout, seed, torch.is_grad_enabled())
        return _explicit(run, q, keys, rotated_q, rotated_k)
    return _fused(pairs, position if has_bias else None, rotated_q, rotated_k, keys.v, dropout)


@dataclass(frozen=True)
class _Block:
    """Some queries of some batch rows, and the keys that any of them may see.

    ``free``: how many of the first columns every query of the block sees for certain.
    """

    batch: slice
    rows: slice
    columns: slice
    free: int

    @property
    def of_queries(self) -> tuple[slice, slice, slice]:
        """Where the block lies in ``[batch, heads, q_time, any]``."""
        return self.batch, slice(None), self.rows

    @property
    def of_keys(self) -> tuple[slice, slice, slice]:
        """Where the block lies in ``[batch, heads, k_time, any]``."""
        return self.batch, slice(None), self.columns


@dataclass(frozen=True)
class _Pairs:
    """Which query sees which key, and at what distance."""

    q_positions: Tensor
    k_positions: Tensor
    q_documents: Tensor | None
    k_documents: Tensor | None
    padding: Tensor | None
    consecutive: bool
    causal: bool
    window: int | None

    @staticmethod
    def of(context: Context, keys: KeyValues, causal: bool, window: int | None) -> _Pairs:
        q_documents, k_documents = context.documents, keys.documents
        if q_documents is not None or k_documents is not None:
            q_documents = torch.zeros_like(context.positions) if q_documents is None else q_documents
            k_documents = torch.zeros_like(keys.positions) if k_documents is None else k_documents
        return _Pairs(
            q_positions=context.positions,
            k_positions=keys.positions,
            q_documents=q_documents,
            k_documents=k_documents,
            padding=keys.padding,
            consecutive=context.consecutive and keys.consecutive,
            causal=causal,
            window=window if window is not None and window < keys.length else None,
        )

    @property
    def offset(self) -> int:
        """Index of the first query among the keys."""
        return self.k_positions.shape[1] - self.q_positions.shape[1]

    @property
    def ragged(self) -> bool:
        """Whether visibility differs between batch rows; only then may a query see nothing at all."""
        return self.q_documents is not None or self.padding is not None

    @property
    def all_visible(self) -> bool:
        """Whether every query sees every key."""
        return not (self.ragged or self.window or (self.causal and self.q_positions.shape[1] > 1))

    @property
    def whole(self) -> _Block:
        """All queries and all keys."""
        batches, q_time = self.q_positions.shape
        return _Block(slice(0, batches), slice(0, q_time), slice(0, self.k_positions.shape[1]), 0)

    def blocks(self, batch: int, rows: int) -> Iterator[_Block]:
        """All queries, at most ``rows`` of at most ``batch`` batch rows at a time."""
        batches, q_time, k_time = self.q_positions.shape[0], self.q_positions.shape[1], self.k_positions.shape[1]
        for b in range(0, batches, batch):
            for start in range(0, q_time, rows):
                stop = min(start + rows, q_time)
                first, last = 0, self.offset + stop if self.causal else k_time
                if self.window:
                    first = max(0, self.offset + start - self.window + 1)
                    last = min(last, self.offset + stop - 1 + self.window)
                free = 0
                if not self.ragged and not self.window:
                    free = self.offset + start + 1 if self.causal else k_time
                yield _Block(slice(b, min(b + batch, batches)), slice(start, stop), slice(first, last), free)

    def alignment(self, block: _Block, vectors: Tensor | None = None) -> Alignment:
        """``vectors``: of all distances, ``[1 or heads, q_time + k_time - 1, any]``, or None."""
        rows, columns = block.rows, block.columns
        if vectors is not None:
            vectors = vectors[:, self.distances(block)]
        return Alignment(
            self.q_positions[block.batch, rows],
            self.k_positions[block.batch, columns],
            self.offset + rows.start - columns.start if self.consecutive else None,
            vectors,
        )

    def distances(self, block: _Block) -> slice:
        """Where the distances of the block lie among those of the whole, both largest first."""
        first = self.q_positions.shape[1] - block.rows.stop + block.columns.start
        return slice(first, first + block.rows.stop - block.rows.start + block.columns.stop - block.columns.start - 1)

    def visible(self, block: _Block) -> Tensor:
        """bool, ``[1 or batch, 1, rows, columns]``."""
        device = self.q_positions.device
        i = torch.arange(block.rows.start, block.rows.stop, device=device)[:, None] + self.offset
        j = torch.arange(block.columns.start, block.columns.stop, device=device)
        seen = (j <= i if self.causal else j >= 0)[None, None].expand(1, 1, len(i), len(j))
        if self.window:
            seen = seen & ((i - j).abs() < self.window)
        if self.q_documents is not None and self.k_documents is not None:
            documents = self.k_documents[block.batch, None, None, block.columns]
            seen = seen & (self.q_documents[block.batch, None, block.rows, None] == documents)
        if self.padding is not None:
            seen = seen & ~self.padding[block.batch, None, None, block.columns]
        return seen


def _fused(
    pairs: _Pairs, position: PositionEncoding | None, q: Tensor, k: Tensor, v: Tensor, dropout: float
) -> Tensor:
    """The fused kernel; ``position`` only if it has a bias. A mask is made for one block of queries at a time."""
    if position is None and pairs.all_visible:
        return scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    if position is None and not pairs.ragged and not pairs.window and q.shape[2] == k.shape[2]:
        return scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)

    def read(q: Tensor, k: Tensor, v: Tensor, block: _Block) -> Tensor:
        visible = pairs.visible(block)
        bias = None if position is None else position.position_bias(pairs.alignment(block))
        bias = q.new_zeros(()) if bias is None else bias.to(q.dtype)
        mask = torch.where(visible, bias, torch.finfo(q.dtype).min)
        o = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        # a query that sees nothing got the mean of all values
        return o.masked_fill(~visible.any(-1, keepdim=True), 0) if pairs.ragged else o

    blocks = list(pairs.blocks(q.shape[0], _FUSED_ROWS))
    # the kernel keeps its mask for the backward pass; together they must not outgrow what it keeps of q, k and v
    per_pair = (q.shape[0] if pairs.ragged else 1) * (1 if position is None else q.shape[1])
    kept = per_pair * sum(len(range(q.shape[2])[b.rows]) * len(range(k.shape[2])[b.columns]) for b in blocks)
    outputs = []
    for block in blocks:
        parts = (q[block.of_queries], k[block.of_keys], v[block.of_keys])
        if kept > q.numel() + k.numel() + v.numel() and torch.is_grad_enabled():
            outputs.append(checkpoint(read, *parts, block, use_reentrant=False))
        else:
            outputs.append(read(*parts, block))
    return torch.cat(outputs, 2)


@dataclass(frozen=True)
class _Weighed:
    """The attention weights of a block, and how they came about.

    Args:
        read: what the biases were made of, by name; leaves of the graph, if there is one.
        biases: what was added to the scores; each broadcasts to the shape of ``weights``.
        weights: before dropout, ``[batch, heads, rows, columns]``.
        visible: ``[1 or batch, 1, rows, columns]``.
    """

    read: dict[str, Tensor]
    biases: list[Tensor]
    weights: Tensor
    visible: Tensor


@dataclass(frozen=True)
class _Run:
    """One call of the explicit path: what it needs beside tensors that have gradients."""

    pairs: _Pairs
    position: PositionEncoding
    reads_content: bool
    has_bias: bool
    dropout: float
    seed: int
    differentiable: bool

    @property
    def pair_width(self) -> int:
        return self.position.pair_width if self.reads_content else 1

    def blocks(self, q: Tensor, k: Tensor) -> Iterator[_Block]:
        """Blocks of at most ``_PAIRS`` numbers a tensor: fewer queries first, then fewer batch rows."""
        per_query = q.shape[1] * k.shape[2] * self.pair_width
        least = max(1, min(_LEAST_ROWS // self.pair_width, q.shape[2]))
        rows = min(q.shape[2], max(least, _PAIRS // (q.shape[0] * per_query)))
        return self.pairs.blocks(max(1, min(q.shape[0], _PAIRS // (rows * per_query))), rows)

    def scores(self, q: Tensor, k: Tensor, block: _Block, visible: Tensor) -> Tensor:
        """``c * q . k``, the least finite number where not visible: ``[batch, heads, rows, columns]``."""
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
        return self.hide(scores.to(torch.promote_types(q.dtype, torch.float32)), block, visible)

    def hide(self, scores: Tensor, block: _Block, visible: Tensor) -> Tensor:
        """In place; ``scores`` is the caller's own."""
        scores[..., block.free :].masked_fill_(~visible[..., block.free :], torch.finfo(scores.dtype).min)
        return scores

    def weigh(self, inputs: Sequence[Tensor | None], block: _Block, differentiable: bool) -> _Weighed:
        """The weights of a block; ``inputs`` as those of ``_ExplicitAttention``, down to the distance vectors."""
        q, k, _, plain_q, plain_k, features, vectors = inputs
        assert q is not None
        assert k is not None
        rows, columns = block.of_queries, block.of_keys
        visible, alignment = self.pairs.visible(block), self.pairs.alignment(block)
        scores = self.scores(q[rows], k[columns], block, visible)
        read = {
            "scores": scores,
            "q": (q if plain_q is None else plain_q)[rows],
            "k": (k if plain_k is None else plain_k)[columns],
        }
        if features is not None:
            read["features"] = features[columns]
        if vectors is not None:
            read["vectors"] = vectors[:, self.pairs.distances(block)]
        if differentiable:
            read = {name: tensor.detach().requires_grad_() for name, tensor in read.items()}
        if vectors is not None:
            alignment = replace(alignment, vectors=read["vectors"])
        biases = []
        with torch.set_grad_enabled(differentiable):
            if self.reads_content:
                content = (read["q"], read["k"], read["scores"], read.get("features"), alignment, visible)
                biases.append(self.position.content_bias(*content))
            if self.has_bias and (bias := self.position.position_bias(alignment)) is not None:
                biases.append(bias)
        for bias in biases:
            scores = scores + bias.detach()
        return _Weighed(read, biases, torch.softmax(self.hide(scores, block, visible), -1), visible)

    def kept(self, weights: Tensor, block: _Block) -> Tensor:
        """Dropout's factors, ``[batch, heads, rows, columns]``: the same again in the backward pass."""
        if weights.device.type == "meta":
            return torch.ones_like(weights)
        generator = torch.Generator(weights.device).manual_seed(
            self.seed + block.batch.start * 2**32 + block.rows.start
        )
        drawn = torch.rand(weights.shape, generator=generator, device=weights.device)
        return (drawn >= self.dropout).to(weights.dtype) / (1 - self.dropout)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Dtypes are chosen by hand: products in that of the inputs, everything from the scores on in float32 or wider."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


@torch.compiler.disable
def _explicit(run: _Run, q: Tensor, keys: KeyValues, rotated_q: Tensor, rotated_k: Tensor) -> Tensor:
    """Blocks of queries with recomputation; ``[batch, heads, q_time, head_dim]``."""
    plain_q = plain_k = features = vectors = None
    if run.reads_content:
        features = keys.features
        if rotated_q is not q:
            plain_q, plain_k = q, keys.k
        if run.pairs.consecutive:
            vectors = run.position.distance_vectors(run.pairs.alignment(run.pairs.whole).all_distances())
    tensors = (rotated_q, rotated_k, keys.v, plain_q, plain_k, features, vectors)
    return _ExplicitAttention.apply(
        run, *(None if tensor is None else tensor.contiguous() for tensor in tensors), *run.position.parameters()
    )


class _ExplicitAttention(torch.autograd.Function):
    """``run, q, k, v, unrotated q, unrotated k, features, distance vectors, *parameters -> output``.

    Unrotated queries and keys are None where rotation changes nothing. For the backward pass the arguments are kept,
    and the first blocks up to ``_KEPT_PAIRS``; all others are made again. With ``P = softmax(S)`` of a block,

        dV = P^T dO,  dP = dO V^T,  dS = P * (dP - rowsum(P * dP)),  dQ = c dS K,  dK = c dS^T Q

    and the bias hands its share of dS on to all that it read, by autograd within the block.
    """

    @staticmethod
    def forward(ctx: Any, run: _Run, *tensors: Any) -> Tensor:
        ctx.run, ctx.weighed = run, {}
        ctx.save_for_backward(*tensors)
        q, k, v = tensors[:3]
        room = _KEPT_PAIRS if run.differentiable and any(ctx.needs_input_grad) else 0
        out = torch.empty_like(q)
        # hooks on saved tensors (of checkpointing, of offloading) are for the arguments
        with _without_autocast(q.device), saved_tensors_hooks(_as_it_is, _as_it_is):
            for index, block in enumerate(run.blocks(q, k)):
                rows, columns = block.of_queries, block.of_keys
                pairs = q[rows].shape[:3].numel() * k[columns].shape[2] * run.pair_width
                weighed = run.weigh(tensors[:7], block, differentiable=pairs <= room)
                if pairs <= room:
                    ctx.weighed[index] = weighed
                    room -= pairs
                weights = weighed.weights
                if run.dropout:
                    weights = weights * run.kept(weights, block)
                o = torch.matmul(weights.to(v.dtype), v[columns])
                out[rows] = o.masked_fill_(~weighed.visible.any(-1, keepdim=True), 0) if run.pairs.ragged else o
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        run: _Run = ctx.run
        inputs = ctx.saved_tensors[:7]
        q, k, v, plain_q = inputs[:4]
        learned = [parameter for parameter in run.position.parameters() if parameter.requires_grad]
        d_learned: dict[Tensor, Tensor] = {}
        wide = torch.promote_types(q.dtype, torch.float32)
        sums: list[Any] = [None if x is None else torch.zeros_like(x, dtype=wide) for x in inputs]
        d_q, d_k, d_v, d_plain_q, d_plain_k, d_features, d_vectors = sums
        if plain_q is None:
            d_plain_q, d_plain_k = d_q, d_k

        with _without_autocast(q.device):
            for index, block in enumerate(run.blocks(q, k)):
                rows, columns = block.of_queries, block.of_keys
                weighed = ctx.weighed.pop(index, None) or run.weigh(inputs, block, differentiable=True)
                weights, d_o = weighed.weights, d_out[rows]
                if run.pairs.ragged:
                    d_o = d_o.masked_fill(~weighed.visible.any(-1, keepdim=True), 0)
                d_weights = torch.matmul(d_o, v[columns].transpose(-1, -2)).to(wide)
                used = weights
                if run.dropout:
                    kept = run.kept(weights, block)
                    used, d_weights = weights * kept, d_weights * kept
                d_v[columns] += torch.matmul(used.to(v.dtype).transpose(-1, -2), d_o)
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, wide)

                moving = [bias for bias in weighed.biases if bias.requires_grad]
                if moving:
                    d_biases = [d_scores.sum_to_size(bias.shape).to(bias.dtype) for bias in moving]
                    wanted = [*weighed.read.values(), *learned]
                    found = torch.autograd.grad(moving, wanted, d_biases, allow_unused=True)
                    distances = (slice(None), run.pairs.distances(block))
                    totals: dict[str, tuple[Tensor, Any]] = {
                        "scores": (d_scores, ...),
                        "q": (d_plain_q, rows),
                        "k": (d_plain_k, columns),
                        "features": (d_features, columns),
                        "vectors": (d_vectors, distances),
                    }
                    for name, gradient in zip(weighed.read, found, strict=False):
                        total, place = totals[name]
                        if gradient is not None:
                            total[place] += gradient
                    for parameter, gradient in zip(learned, found[len(weighed.read) :], strict=True):
                        if gradient is not None:
                            d_learned[parameter] = d_learned.get(parameter, 0) + gradient

                d_scores = d_scores.to(q.dtype)
                d_q[rows] += torch.matmul(d_scores, k[columns]) * q.shape[-1] ** -0.5
                d_k[columns] += torch.matmul(d_scores.transpose(-1, -2), q[rows] * q.shape[-1] ** -0.5)
        d_inputs = (None if total is None else total.to(q.dtype) for total in sums[:6])
        return None, *d_inputs, d_vectors, *(d_learned.get(parameter) for parameter in run.position.parameters())


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
