"""The explicit path of attention: biases that read queries, keys or scores, or that are trained.

Queries are taken in blocks, each block sees its whole row of keys, and the backward pass recomputes all blocks but a
constant few, so that nothing of size ``q_time x k_time`` stays alive (as in Rabe and Staats 2021, arXiv 2112.05682).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from lcbench.attention.cache import KeyValues
from lcbench.attention.pairs import Block, Pairs
from lcbench.attention.precision import without_autocast
from lcbench.position.base import PositionEncoding

#: pairs of query and key that one block holds at a time: its tensors then fit a CPU's cache
_PAIRS = 2**19
#: pairs whose blocks are kept for the backward pass, about 24 bytes each: a constant, so memory stays linear in length
_KEPT_PAIRS = 2**20
#: queries in a block at least: matrix products need rows
_LEAST_ROWS = 32


@dataclass(frozen=True)
class Normalised:
    """What the scores of a block became: softmax over all keys. A subclass is another normalisation.

    Args:
        weights: before dropout, ``[batch, heads, rows, columns]``.
    """

    weights: Tensor

    def backward(self, d_weights: Tensor) -> Tensor:
        """The gradient of the scores; ``d_weights`` is the caller's own."""
        return torch._softmax_backward_data(d_weights, self.weights, -1, d_weights.dtype)


@dataclass(frozen=True)
class _Weighed:
    """The attention weights of a block, and how they came about.

    Args:
        read: what the biases were made of, by name; leaves of the graph, if there is one.
        biases: what was added to the scores; each broadcasts to the shape of the weights.
        normalised: the weights, ``[batch, heads, rows, columns]``.
        visible: ``[1 or batch, 1, rows, columns]``.
        normaliser: log of the sum of exponentials of the scores, ``[batch, heads, rows]``, if it was asked for.
    """

    read: dict[str, Tensor]
    biases: list[Tensor]
    normalised: Normalised
    visible: Tensor
    normaliser: Tensor | None


@dataclass(frozen=True)
class Run:
    """One call of the explicit path: what it needs beside tensors that have gradients."""

    pairs: Pairs
    position: PositionEncoding
    reads_content: bool
    has_bias: bool
    dropout: float
    seed: int
    differentiable: bool
    #: whether the logarithm of the softmax's denominator is returned too
    normaliser: bool = field(default=False, kw_only=True)

    @property
    def pair_width(self) -> int:
        return self.position.pair_width if self.reads_content else 1

    def blocks(self, q: Tensor, k: Tensor) -> Iterator[Block]:
        """Blocks of at most ``_PAIRS`` numbers a tensor: fewer queries first, then fewer batch rows."""
        least = max(1, min(_LEAST_ROWS // self.pair_width, q.shape[2]))
        per_query = q.shape[1] * self.pairs.most_columns(least) * self.pair_width
        rows = min(q.shape[2], max(least, _PAIRS // (q.shape[0] * per_query)))
        per_query = q.shape[1] * self.pairs.most_columns(rows) * self.pair_width
        return self.pairs.blocks(max(1, min(q.shape[0], _PAIRS // (rows * per_query))), rows)

    def scores(self, q: Tensor, k: Tensor, block: Block, visible: Tensor) -> Tensor:
        """``c * q . k``, the least finite number where not visible: ``[batch, heads, rows, columns]``."""
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
        return self.hide(scores.to(torch.promote_types(q.dtype, torch.float32)), block, visible)

    def hide(self, scores: Tensor, block: Block, visible: Tensor) -> Tensor:
        """In place; ``scores`` is the caller's own."""
        scores[..., block.free :].masked_fill_(~visible[..., block.free :], torch.finfo(scores.dtype).min)
        return scores

    def normalise(self, scores: Tensor, block: Block) -> Normalised:
        """The weights of scores ``[batch, heads, rows, columns]``, which may be changed in place."""
        return Normalised(torch.softmax(scores, -1))

    def weigh(self, inputs: Sequence[Tensor | None], block: Block, differentiable: bool) -> _Weighed:
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
        scores = self.hide(scores, block, visible)
        normaliser = None
        if self.normaliser:
            normaliser = scores.logsumexp(-1)
            if self.pairs.ragged:
                normaliser.masked_fill_(~visible.any(-1), -torch.inf)
        return _Weighed(read, biases, self.normalise(scores, block), visible, normaliser)

    def kept(self, weights: Tensor, block: Block) -> Tensor:
        """Dropout's factors, ``[batch, heads, rows, columns]``: the same again in the backward pass."""
        if weights.device.type == "meta":
            return torch.ones_like(weights)
        generator = torch.Generator(weights.device).manual_seed(
            self.seed + block.batch.start * 2**32 + block.rows.start
        )
        drawn = torch.rand(weights.shape, generator=generator, device=weights.device)
        return (drawn >= self.dropout).to(weights.dtype) / (1 - self.dropout)


@torch.compiler.disable
def explicit(run: Run, q: Tensor, keys: KeyValues, rotated_q: Tensor, rotated_k: Tensor) -> Tensor:
    """Blocks of queries with recomputation; ``[batch, heads, q_time, head_dim]``."""
    return _applied(run, q, keys, rotated_q, rotated_k)[0]


@torch.compiler.disable
def explicit_part(run: Run, q: Tensor, keys: KeyValues, rotated_q: Tensor, rotated_k: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the log of the softmax's denominator, ``[batch, heads, q_time]``; -inf where nothing is seen."""
    return _applied(replace(run, normaliser=True), q, keys, rotated_q, rotated_k)


def _applied(run: Run, q: Tensor, keys: KeyValues, rotated_q: Tensor, rotated_k: Tensor) -> tuple[Tensor, Any]:
    tensors = _inputs(run, q, keys, rotated_q, rotated_k)
    return _ExplicitAttention.apply(
        run, *(None if tensor is None else tensor.contiguous() for tensor in tensors), *run.position.parameters()
    )


@torch.compiler.disable
def attention_received(
    run: Run, q: Tensor, keys: KeyValues, rotated_q: Tensor, rotated_k: Tensor, asked: Tensor
) -> Tensor:
    """Weights of every key, summed over queries where ``asked`` ``[batch, q_time]``: ``[batch, heads, k_time]``."""
    inputs = _inputs(run, q, keys, rotated_q, rotated_k)
    total = q.new_zeros(*keys.k.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    with without_autocast(q.device):
        for block in run.blocks(q, keys.k):
            weighed = run.weigh(inputs, block, differentiable=False)
            counts = asked[block.batch, None, block.rows, None] & weighed.visible
            total[block.of_keys] += weighed.normalised.weights.masked_fill(~counts, 0).sum(2)
    return total


def _inputs(run: Run, q: Tensor, keys: KeyValues, rotated_q: Tensor, rotated_k: Tensor) -> tuple[Tensor | None, ...]:
    """What ``Run.weigh`` reads, as the arguments of ``_ExplicitAttention`` have it."""
    plain_q = plain_k = features = vectors = None
    if run.reads_content:
        features = keys.features
        if rotated_q is not q:
            plain_q, plain_k = q, keys.k
        if run.pairs.consecutive:
            vectors = run.position.distance_vectors(run.pairs.alignment(run.pairs.whole).all_distances())
    return rotated_q, rotated_k, keys.v, plain_q, plain_k, features, vectors


class _ExplicitAttention(torch.autograd.Function):
    """``run, q, k, v, unrotated q, unrotated k, features, distance vectors, *parameters -> output, normaliser``.

    Unrotated queries and keys are None where rotation changes nothing. For the backward pass the arguments are kept,
    and the first blocks up to ``_KEPT_PAIRS``; all others are made again. With ``P = softmax(S)`` of a block,

        dV = P^T dO,  dP = dO V^T,  dS = P * (dP - rowsum(P * dP)),  dQ = c dS K,  dK = c dS^T Q

    and the bias hands its share of dS on to all that it read, by autograd within the block. The normaliser l, where it
    is asked for, adds ``P * dl`` to dS.
    """

    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Any) -> tuple[Tensor, Tensor | None]:
        ctx.run, ctx.weighed = run, {}
        ctx.save_for_backward(*tensors)
        q, k, v = tensors[:3]
        room = _KEPT_PAIRS if run.differentiable and any(ctx.needs_input_grad) else 0
        out = torch.empty_like(q)
        normaliser = None
        if run.normaliser:
            normaliser = q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))
        # hooks on saved tensors (of checkpointing, of offloading) are for the arguments
        with without_autocast(q.device), saved_tensors_hooks(_as_it_is, _as_it_is):
            for index, block in enumerate(run.blocks(q, k)):
                rows, columns = block.of_queries, block.of_keys
                pairs = q[rows].shape[:3].numel() * k[columns].shape[2] * run.pair_width
                weighed = run.weigh(tensors[:7], block, differentiable=pairs <= room)
                if pairs <= room:
                    ctx.weighed[index] = weighed
                    room -= pairs
                weights = weighed.normalised.weights
                if run.dropout:
                    weights = weights * run.kept(weights, block)
                o = torch.matmul(weights.to(v.dtype), v[columns])
                out[rows] = o.masked_fill_(~weighed.visible.any(-1, keepdim=True), 0) if run.pairs.ragged else o
                if normaliser is not None:
                    normaliser[rows] = weighed.normaliser
        return out, normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_normaliser: Tensor | None) -> tuple[Tensor | None, ...]:
        run: Run = ctx.run
        inputs = ctx.saved_tensors[:7]
        q, k, v, plain_q = inputs[:4]
        learned = [parameter for parameter in run.position.parameters() if parameter.requires_grad]
        d_learned: dict[Tensor, Tensor] = {}
        wide = torch.promote_types(q.dtype, torch.float32)
        sums: list[Any] = [None if x is None else torch.zeros_like(x, dtype=wide) for x in inputs]
        d_q, d_k, d_v, d_plain_q, d_plain_k, d_features, d_vectors = sums
        if plain_q is None:
            d_plain_q, d_plain_k = d_q, d_k

        with without_autocast(q.device):
            for index, block in enumerate(run.blocks(q, k)):
                rows, columns = block.of_queries, block.of_keys
                weighed = ctx.weighed.pop(index, None) or run.weigh(inputs, block, differentiable=True)
                weights, d_o = weighed.normalised.weights, d_out[rows]
                if run.pairs.ragged:
                    d_o = d_o.masked_fill(~weighed.visible.any(-1, keepdim=True), 0)
                d_weights = torch.matmul(d_o, v[columns].transpose(-1, -2)).to(wide)
                used = weights
                if run.dropout:
                    kept = run.kept(weights, block)
                    used, d_weights = weights * kept, d_weights * kept
                d_v[columns] += torch.matmul(used.to(v.dtype).transpose(-1, -2), d_o)
                d_scores = weighed.normalised.backward(d_weights)
                if d_normaliser is not None:
                    d_scores = torch.addcmul(d_scores, weights, d_normaliser[rows][..., None])

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
