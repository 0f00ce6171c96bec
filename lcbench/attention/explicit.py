"""The explicit path of attention: biases that read queries, keys or scores, or that are trained.

Queries are taken in blocks, each block sees its whole row of keys, and the backward pass recomputes all blocks but a
few, so that nothing of size ``q_time x k_time`` stays alive (as in Rabe and Staats 2021, arXiv 2112.05682).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks
from torch.nn.functional import pad

from lcbench.attention.base import Looks
from lcbench.attention.cache import KeyValues
from lcbench.attention.pairs import Block, Pairs
from lcbench.attention.precision import without_autocast
from lcbench.position.base import Alignment, Counts, PositionEncoding

#: pairs of query and key that one block holds at a time: its tensors then fit a CPU's cache
_PAIRS = 3 * 2**17
#: numbers that may be kept of blocks for the backward pass, 24 MiB, if queries, keys and values are fewer
_KEPT = 6 * 2**20
#: numbers that are kept of a pair whose bias reads its score
_PER_PAIR = 6
#: queries in a block at least: matrix products need rows
_LEAST_ROWS = 32


@dataclass(frozen=True)
class Normalised:
    """What the scores of a block became: softmax over all keys. A subclass is another normalisation.

    Args:
        weights: before dropout, ``[batch, heads, rows, columns]``.
        total: log of the sum of the exponentials of the scores, ``[batch, heads, rows]``, where it is asked for.
    """

    weights: Tensor
    total: Tensor | None = field(default=None, kw_only=True)

    def backward(self, d_weights: Tensor) -> Tensor:
        """The gradient of the scores; ``d_weights`` is the caller's own."""
        return torch._softmax_backward_data(d_weights, self.weights, -1, d_weights.dtype)


@dataclass(frozen=True)
class _Bias:
    """What was added to the scores, without its values; broadcasts to the shape of the weights."""

    edge: GradientEdge
    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class _Weighed:
    """The attention weights of a block, and how they came about.

    Args:
        read: what the biases were made of, by name; leaves of the graph, if there is one.
        biases: those that have a gradient.
        normalised: the weights, ``[batch, heads, rows, columns]``.
        visible: ``[1 or batch, 1, rows, columns]``.
    """

    read: dict[str, Tensor]
    biases: list[_Bias]
    normalised: Normalised
    visible: Tensor


@dataclass(frozen=True)
class Run:
    """One call of the explicit path: what it needs beside tensors that have gradients.

    ``totals``: whether the logarithms of the softmax's sums are wanted too.
    """

    pairs: Pairs
    position: PositionEncoding
    reads_content: bool
    has_bias: bool
    dropout: float
    seed: int
    differentiable: bool
    totals: bool = field(default=False, kw_only=True)

    @property
    def pair_width(self) -> int:
        return self.position.pair_width if self.reads_content else 1

    @property
    def reads_scores(self) -> bool:
        return self.reads_content and self.position.reads_scores

    @property
    def kept_of_pair(self) -> int:
        """Numbers that are kept of a pair for the backward pass, if its block is."""
        # a product of queries with vectors of distances keeps nothing of a pair; its weight is left
        product = self.reads_content and not self.position.reads_scores and self.pairs.consecutive
        return 1 if product else _PER_PAIR * self.pair_width

    def blocks(self, q: Tensor, k: Tensor) -> Iterator[Block]:
        """Blocks of at most ``_PAIRS`` numbers a tensor: fewer batch rows first, then fewer queries.

        A block of whole rows is one piece of memory, and so are the keys of one row's head.
        """
        batches, heads, q_time, _ = q.shape
        per_query = heads * self.pairs.most_columns(q_time) * self.pair_width
        if q_time * per_query <= _PAIRS:
            return self.pairs.blocks(min(batches, _PAIRS // (q_time * per_query)), q_time)
        least = max(1, min(_LEAST_ROWS // self.pair_width, q_time))
        per_query = heads * self.pairs.most_columns(least) * self.pair_width
        rows = min(q_time, max(least, _PAIRS // per_query))
        return self.pairs.blocks(1, -(-q_time // -(-q_time // rows)))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """``c * q . k``, ``[batch, heads, rows, columns]``."""
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
        return scores.to(torch.promote_types(q.dtype, torch.float32))

    def hide(self, scores: Tensor, block: Block, visible: Tensor) -> Tensor:
        """The least finite number where not visible, in place; ``scores`` is the caller's own."""
        scores[..., block.free :].masked_fill_(~visible[..., block.free :], torch.finfo(scores.dtype).min)
        return scores

    def normalise(self, scores: Tensor, block: Block) -> Normalised:
        """The weights of scores ``[batch, heads, rows, columns]``, which may be changed in place."""
        return Normalised(torch.softmax(scores, -1), total=scores.logsumexp(-1) if self.totals else None)

    def weigh(self, inputs: Sequence[Tensor | None], block: Block, differentiable: bool) -> _Weighed:
        """The weights of a block; ``inputs`` as those of ``_ExplicitAttention``, down to the distance vectors."""
        q, k, _, plain_q, plain_k, features, vectors = inputs
        assert q is not None
        assert k is not None
        rows, columns = block.of_queries, block.of_keys
        visible, alignment = self.pairs.visible(block), self.pairs.alignment(block)
        scores = self.scores(q[rows], k[columns])
        read = {
            "q": (q if plain_q is None else plain_q)[rows],
            "k": (k if plain_k is None else plain_k)[columns],
        }
        if self.reads_scores:
            read["scores"] = self.hide(scores, block, visible)
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
                seen = read.get("scores", scores.new_empty(0))
                content = (read["q"], read["k"], seen, read.get("features"), alignment, visible)
                biases.append(self.position.content_bias(*content))
            if self.has_bias and (bias := self.position.position_bias(alignment)) is not None:
                biases.append(bias)
        for number, bias in enumerate(biases):
            # the graph may keep the scores that it has read
            scores = scores + bias.detach() if number == 0 and self.reads_scores else scores.add_(bias.detach())
        moving = [_Bias(get_gradient_edge(b), b.shape, b.dtype) for b in biases if b.requires_grad]
        return _Weighed(read, moving, self.normalise(self.hide(scores, block, visible), block), visible)

    def kept(self, weights: Tensor, block: Block) -> Tensor:
        """Dropout's factors, ``[batch, heads, rows, columns]``: the same again in the backward pass."""
        if weights.device.type == "meta":
            return torch.ones_like(weights)
        generator = torch.Generator(weights.device).manual_seed(
            self.seed + block.batch.start * 2**32 + block.rows.start
        )
        drawn = torch.rand(weights.shape, generator=generator, device=weights.device)
        return (drawn >= self.dropout).to(weights.dtype) / (1 - self.dropout)


def distance_vectors(position: PositionEncoding, q_time: int, k_time: int, *, causal: bool = True) -> Tensor | None:
    """What ``position`` must know of the distances of ``q_time`` queries and ``k_time`` keys, the last of which are
    the queries' own: ``[1 or heads, q_time + k_time - 1, any]``, those of the largest distance first, or None.

    With ``causal`` the last ``q_time - 1``, of keys after their query, are zero.
    """
    positions = torch.arange(k_time, device=next(position.parameters(), torch.empty(0)).device)[None]
    distances = Alignment(positions[:, k_time - q_time :], positions, k_time - q_time).all_distances()
    hidden = q_time - 1 if causal else 0
    vectors = position.distance_vectors(distances[: len(distances) - hidden])
    return None if vectors is None else pad(vectors, (0, 0, 0, hidden))


@torch.compiler.disable
def explicit(
    run: Run, q: Tensor, keys: KeyValues, rotated_q: Tensor, rotated_k: Tensor, vectors: Tensor | None = None
) -> Tensor:
    """Blocks of queries with recomputation; ``[batch, heads, q_time, head_dim]``. ``vectors`` as for ``attend``."""
    return explicit_with_totals(run, q, keys, rotated_q, rotated_k, vectors)[0]


@torch.compiler.disable
def explicit_with_totals(
    run: Run, q: Tensor, keys: KeyValues, rotated_q: Tensor, rotated_k: Tensor, vectors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same, and with ``run.totals`` the logarithms of the softmax's sums, ``[batch, heads, q_time]``, in float32
    at least and with a gradient; without, nothing."""
    tensors = _inputs(run, q, keys, rotated_q, rotated_k, vectors)
    o, totals = _ExplicitAttention.apply(
        run, *(None if tensor is None else tensor.contiguous() for tensor in tensors), *run.position.parameters()
    )
    return o, totals


def explicit_part(
    run: Run, q: Tensor, keys: KeyValues, rotated_q: Tensor, rotated_k: Tensor, vectors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The output and its totals, -inf where a query sees nothing."""
    o, totals = explicit_with_totals(replace(run, totals=True), q, keys, rotated_q, rotated_k, vectors)
    return o, totals.masked_fill(totals <= torch.finfo(totals.dtype).min / 2, -torch.inf)


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


@torch.compiler.disable
def attention_looks(run: Run, q: Tensor, keys: KeyValues, rotated_q: Tensor, rotated_k: Tensor) -> Looks:
    """The weights of every pair, and what was counted for it, block by block as the output is made of them."""
    inputs = _inputs(run, q, keys, rotated_q, rotated_k)
    shape = (*q.shape[:3], keys.length)
    weights, gates, positions = (
        q.new_zeros(shape, dtype=torch.promote_types(q.dtype, torch.float32)) for _ in range(3)
    )
    counts = None
    with without_autocast(q.device):
        for block in run.blocks(q, keys.k):
            weighed = run.weigh(inputs, block, differentiable=False)
            place = (block.batch, slice(None), block.rows, block.columns)
            weights[place] = weighed.normalised.weights.masked_fill(~weighed.visible, 0)
            if not run.reads_content:
                continue
            read = weighed.read
            scores = read.get("scores", weights.new_empty(0))
            counts = run.position.counts(read["q"], read["k"], scores, read.get("features"), weighed.visible)
            if counts is not None:
                gates[place], positions[place] = counts.gates, counts.positions
    return Looks(weights, None if counts is None else Counts(gates, positions))


def _inputs(
    run: Run, q: Tensor, keys: KeyValues, rotated_q: Tensor, rotated_k: Tensor, vectors: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """What ``Run.weigh`` reads, as the arguments of ``_ExplicitAttention`` have it."""
    plain_q = plain_k = features = None
    if run.reads_content:
        features = keys.features
        if rotated_q is not q:
            plain_q, plain_k = q, keys.k
    if not (run.reads_content and run.pairs.consecutive):
        vectors = None
    elif vectors is None:
        vectors = distance_vectors(run.position, q.shape[2], keys.length, causal=run.pairs.causal)
    else:
        vectors = vectors[:, vectors.shape[1] - q.shape[2] - keys.length + 1 :]
    return rotated_q, rotated_k, keys.v, plain_q, plain_k, features, vectors


class _ExplicitAttention(torch.autograd.Function):
    """``run, q, k, v, unrotated q, unrotated k, features, distance vectors, *parameters -> output, totals``.

    Unrotated queries and keys are None where rotation changes nothing. For the backward pass the arguments are kept,
    and the first blocks up to ``room_for_blocks``; all others are made again. With ``P = softmax(S)`` of a block,

        dV = P^T dO,  dP = dO V^T,  dS = P * (dP - rowsum(P * dP)),  dQ = c dS K,  dK = c dS^T Q

    and the bias hands its share of dS on to all that it read, by autograd within the block. The gradient of a row's
    total adds ``P dtotal`` to dS.
    """

    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Any) -> tuple[Tensor, Tensor]:
        ctx.run, ctx.weighed = run, {}
        ctx.save_for_backward(*tensors)
        q, k, v = tensors[:3]
        room = room_for_blocks(q, k, v) if run.differentiable and any(ctx.needs_input_grad) else 0
        out = torch.empty_like(q)
        totals = q.new_empty(q.shape[:3] if run.totals else (0,), dtype=torch.promote_types(q.dtype, torch.float32))
        # hooks on saved tensors (of checkpointing, of offloading) are for the arguments
        with without_autocast(q.device), saved_tensors_hooks(_as_it_is, _as_it_is):
            for index, block in enumerate(run.blocks(q, k)):
                rows, columns = block.of_queries, block.of_keys
                kept = q[rows].shape[:3].numel() * k[columns].shape[2] * run.kept_of_pair
                weighed = run.weigh(tensors[:7], block, differentiable=kept <= room)
                if kept <= room:
                    ctx.weighed[index] = weighed
                    room -= kept
                weights = weighed.normalised.weights
                if weighed.normalised.total is not None:
                    totals[rows] = weighed.normalised.total
                if run.dropout:
                    weights = weights * run.kept(weights, block)
                o = torch.matmul(weights.to(v.dtype), v[columns])
                out[rows] = o.masked_fill_(~weighed.visible.any(-1, keepdim=True), 0) if run.pairs.ragged else o
        if not run.totals:
            ctx.mark_non_differentiable(totals)
        return out, totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_totals: Tensor) -> tuple[Tensor | None, ...]:
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
                add_product(d_v[columns], used.to(v.dtype).transpose(-1, -2), d_o)
                d_scores = weighed.normalised.backward(d_weights)
                if run.totals:
                    d_scores = torch.addcmul(d_scores, weights, d_totals[rows][..., None])

                if weighed.biases:
                    d_biases = [d_scores.sum_to_size(bias.shape).to(bias.dtype) for bias in weighed.biases]
                    edges = [bias.edge for bias in weighed.biases]
                    wanted = [*weighed.read.values(), *learned]
                    found = torch.autograd.grad(edges, wanted, d_biases, allow_unused=True)
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
                add_product(d_q[rows], d_scores, k[columns], q.shape[-1] ** -0.5)
                add_product(d_k[columns], d_scores.transpose(-1, -2), q[rows], q.shape[-1] ** -0.5)
        d_inputs = (None if total is None else total.to(q.dtype) for total in sums[:6])
        return None, *d_inputs, d_vectors, *(d_learned.get(parameter) for parameter in run.position.parameters())


def add_product(total: Tensor, a: Tensor, b: Tensor, factor: float = 1.0) -> None:
    """``total += factor * a b``, all ``[batch, heads, any, any]``; without a product of its own where that can be."""
    if total.dtype == a.dtype == b.dtype and (len(total) == 1 or total.is_contiguous()):
        sums = total.flatten(0, 1)
        torch.baddbmm(sums, a.flatten(0, 1), b.flatten(0, 1), alpha=factor, out=sums)
    else:
        total += torch.matmul(a, b) * factor


def room_for_blocks(q: Tensor, k: Tensor, v: Tensor) -> int:
    """Numbers that may be kept of blocks for the backward pass: linear in length, as what is kept anyway."""
    return max(_KEPT, q.numel() + k.numel() + v.numel())


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
