"""One softmax over keys that lie in several places: around the query, and far from it.

    o_i = sum_n sum_{j in S_n(i)} exp(s_ij) v_j / sum_n sum_{j in S_n(i)} exp(s_ij)

for disjoint sets S_n(i), the parts. Each part is laid out so that the keys of a block of queries are few and lie side
by side. With ``L_n(i)`` the logarithm of part n's own sum, ``L(i)`` that of all of them, and o_n of its own softmax,

    o_i = sum_n exp(L_n(i) - L(i)) o_n,i

The backward pass needs no more than attention's usual one: given o and L in the place of o_n and L_n, a part's weights
are ``P = exp(S - L)``, and ``dV = P^T dO``, ``dS = P (dO V^T - rowsum(dO o))`` are its share of the gradient. So each
part goes through the fused kernel both ways, and masks are made for one block at a time and not kept.

A bias that reads queries or keys, or is trained, and dropout take the explicit path, part by part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues
from lcbench.attention.explicit import Run, explicit_with_totals
from lcbench.attention.flash import flash, flash_backward
from lcbench.attention.pairs import Block, Pairs
from lcbench.attention.precision import wide, without_autocast
from lcbench.attention.ranges import Ranges
from lcbench.attention.reach import Reach, Segment
from lcbench.position.base import PositionEncoding

#: queries in a block, at least and at most
_LEAST_ROWS, _MOST_ROWS = 64, 256
#: queries in a block that needs no mask: a whole segment, because the kernel's memory is linear in it
_SQUARE_ROWS = 4096
#: numbers of a mask that differs from row to row, at a time
_MASKED = 2**20
#: keys that all queries of a block see, from which on they are worth a call without a mask
_FREE_COLUMNS = 128


#: by ``Pairs.pattern``
Masks = dict[tuple[int, int, int] | None, Tensor]


class Layout(Protocol):
    """Where the queries and keys of a part stand."""

    def keys(self, tensor: Tensor) -> Tensor:
        """``[batch, heads, k_time, any]`` to the part's rows, ``[rows, heads, k_places, any]``."""

    def queries(self, tensor: Tensor, fill: float = 0) -> Tensor:
        """``[batch, heads, q_time, any]`` to ``[rows, heads, q_places, any]``, ``fill`` where there is no query."""

    def lift(self, tensor: Tensor) -> Tensor:
        """``[rows, heads, q_places, any]`` back to ``[batch, heads, q_time, any]``."""


class InOrder:
    """The layout that changes nothing."""

    def keys(self, tensor: Tensor) -> Tensor:
        return tensor

    def queries(self, tensor: Tensor, fill: float = 0) -> Tensor:
        return tensor

    def lift(self, tensor: Tensor) -> Tensor:
        return tensor


@dataclass(frozen=True)
class Part:
    """
    Args:
        keys: some of the keys that queries see, not laid out.
        pairs: which query sees which of them, as they are laid out.
        layout: how that is.
    """

    keys: KeyValues
    pairs: Pairs
    layout: Layout

    @staticmethod
    def near(context: Context, keys: KeyValues, reach: Reach, causal: bool = True) -> Part:
        """The keys within ``reach``; the queries' own are the last of ``keys``, and their padding comes last."""
        return Part(keys, Pairs.of(context, keys, causal, reach), InOrder())


def attend_parts(
    q: Tensor,
    context: Context,
    parts: Sequence[Part],
    position: PositionEncoding,
    *,
    heads: Sequence[int],
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention of ``q`` over the keys of all ``parts`` together.

    Args:
        q: queries before rotation, ``[batch, some heads, q_time, head_dim]``.
        context: describes the queries, ``[batch, q_time]``.
        parts: no pair of query and key may be visible in two of them.
        position: the layer's encoding.
        heads: which of the layer's heads these are.
        dropout: probability of dropping an attention weight; 0 outside training.

    Returns:
        ``[batch, some heads, q_time, head_dim]``; 0 where a query sees no key.
    """
    parts = [part for part in parts if part.keys.length]
    if q.numel() == 0 or not parts:
        return torch.zeros_like(q)
    has_bias = type(position).position_bias is not PositionEncoding.position_bias
    reads_content = any(position.reads_content(part.keys.positions) for part in parts)
    learns_bias = has_bias and torch.is_grad_enabled() and any(p.requires_grad for p in position.parameters())
    position = position.of_heads(list(heads))
    rotated_q, rotated_k = position.rotate(q, parts[0].keys.k, context.positions, parts[0].keys.positions)
    rotated = [rotated_k]
    for part in parts[1:]:
        if part.keys is not parts[0].keys:
            none = (q[:, :, :0], part.keys.k, context.positions[:, :0], part.keys.positions)
            rotated_k = position.rotate(*none)[1]
        rotated.append(rotated_k)
    if reads_content or learns_bias or dropout > 0:
        return _explicit(q, rotated_q, parts, rotated, position, (reads_content, has_bias), dropout)
    laid = []
    for part, k in zip(parts, rotated, strict=True):
        laid += [part.layout.queries(rotated_q), part.layout.keys(k), part.layout.keys(part.keys.v)]
    return _fused(parts, position if has_bias else None, laid)


def _explicit(
    q: Tensor,
    rotated_q: Tensor,
    parts: Sequence[Part],
    rotated: Sequence[Tensor],
    position: PositionEncoding,
    biases: tuple[bool, bool],
    dropout: float,
) -> Tensor:
    outputs, totals = [], []
    for part, rotated_k in zip(parts, rotated, strict=True):
        seed = int(torch.randint(2**62, (), device="cpu")) if dropout > 0 else 0
        run = Run(part.pairs, position, *biases, dropout, seed, torch.is_grad_enabled(), totals=True)
        laid_q, laid_k = part.layout.queries(rotated_q), part.layout.keys(rotated_k)
        plain_q = laid_q if rotated_q is q else part.layout.queries(q)
        features = None if part.keys.features is None else part.layout.keys(part.keys.features)
        keys = dataclasses.replace(
            part.keys,
            k=laid_k if rotated_k is part.keys.k else part.layout.keys(part.keys.k),
            v=part.layout.keys(part.keys.v),
            features=features,
        )
        o, total = explicit_with_totals(run, plain_q, keys, laid_q, laid_k)
        outputs.append(part.layout.lift(o))
        totals.append(part.layout.lift(total[..., None]))
    if len(outputs) == 1:
        return outputs[0]
    # [parts, batch, heads, q_time, 1]; where a query sees nothing at all, the parts are zero
    shares = torch.stack(totals).clamp(min=torch.finfo(totals[0].dtype).min / 2).softmax(0)
    return sum(share * wide(o) for share, o in zip(shares, outputs, strict=True)).to(q.dtype)  # type: ignore[union-attr]


@torch.compiler.disable
def _fused(parts: Sequence[Part], bias: PositionEncoding | None, laid: Sequence[Tensor]) -> Tensor:
    return _PartsAttention.apply(parts, bias, *laid)


class _PartsAttention(torch.autograd.Function):
    """``parts, encoding with a bias or None, *(q, k, v of each part, laid out) -> output``; see the module."""

    @staticmethod
    def forward(ctx: Any, parts: Sequence[Part], bias: PositionEncoding | None, *laid: Tensor) -> Tensor:
        ctx.parts, ctx.bias = parts, bias
        o = total = None
        with without_autocast(laid[0].device):
            for n, part in enumerate(parts):
                new_o, new_total = _read(part.pairs, bias, *laid[3 * n : 3 * n + 3])
                new_o, new_total = part.layout.lift(new_o), part.layout.lift(new_total[..., None])
                o, total = (new_o, new_total) if o is None or total is None else _joined(o, total, new_o, new_total)
        assert o is not None
        assert total is not None
        # a query that sees nothing got the mean of what is hidden
        hidden = total <= torch.finfo(total.dtype).min / 2
        o, total = o.masked_fill(hidden, 0).to(laid[0].dtype), total.masked_fill(hidden, 0)
        ctx.save_for_backward(o, total, hidden, *laid)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor) -> tuple[Tensor | None, ...]:
        o, total, hidden, *laid = ctx.saved_tensors
        d_o = d_o.masked_fill(hidden, 0)
        gradients: list[Tensor | None] = [None, None]
        with without_autocast(o.device):
            for n, part in enumerate(ctx.parts):
                queries = part.layout.queries
                # where there is no query, weights are exp(-inf)
                no_query = torch.finfo(total.dtype).max / 2
                of_all = (queries(d_o), queries(o), queries(total, no_query)[..., 0])
                gradients += _gradients(part.pairs, ctx.bias, (laid[3 * n], laid[3 * n + 1], laid[3 * n + 2]), of_all)
        return tuple(gradients)


def _read(pairs: Pairs, bias: PositionEncoding | None, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A part's own softmax: ``[rows, heads, q_places, head_dim]`` and the logarithm of its sum, ``[rows, heads,
    q_places]``, both in float32 at least."""
    o = torch.empty_like(q, dtype=torch.promote_types(q.dtype, torch.float32))  # as q lies: heads are merged again
    total = o.new_empty(q.shape[:3])
    masks: Masks = {}
    for block in _blocks(pairs, bias, q):
        rows, found = block.of_queries, None
        for columns, mask, causal in _calls(pairs, bias, block, q.dtype, masks):
            some = (block.batch, slice(None), columns)
            new = _attention(q[rows], k[some], v[some], mask, causal)
            new = new[0], new[1][..., None]
            found = new if found is None else _joined(*found, *new)
        assert found is not None
        o[rows], total[rows] = found[0], found[1][..., 0]
    return o, total


def _gradients(
    pairs: Pairs,
    bias: PositionEncoding | None,
    of_part: tuple[Tensor, Tensor, Tensor],
    of_all: tuple[Tensor, Tensor, Tensor],
) -> list[Tensor]:
    """Of q, k and v of a part, ``of_part``; ``of_all``: the output's gradient, the output and the logarithm of the sum
    of all parts together."""
    q, k, v = of_part
    d_o, o, normaliser = of_all
    d_q, d_k, d_v = (torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in of_part)
    masks: Masks = {}
    for block in _blocks(pairs, bias, q):
        rows = block.of_queries
        for columns, mask, causal in _calls(pairs, bias, block, q.dtype, masks):
            some = (block.batch, slice(None), columns)
            found = _attention_backward(d_o[rows], q[rows], k[some], v[some], o[rows], normaliser[rows], mask, causal)
            for total, place, gradient in ((d_q, rows, found[0]), (d_k, some, found[1]), (d_v, some, found[2])):
                total[place].add_(gradient)
    return [d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)]


def _blocks(pairs: Pairs, bias: PositionEncoding | None, q: Tensor) -> Iterator[Block]:
    """All queries; so few rows at a time that masks stay small where they differ from row to row."""
    rows = _rows(pairs)
    if not pairs.ragged or (isinstance(pairs, Ranges) and pairs.exact):
        return pairs.blocks(len(q), rows)
    rows = min(rows, q.shape[2])
    masked = rows * pairs.most_columns(rows) * (1 if bias is None else q.shape[1])
    return pairs.blocks(max(1, min(len(q), _MASKED // masked)), rows)


def _rows(pairs: Pairs) -> int:
    """Queries in a block: a fraction of a window, or a block would read mostly what it does not see."""
    if isinstance(pairs.reach, Segment) and pairs.reach.memory == 0 and not pairs.ragged:
        return _SQUARE_ROWS
    if pairs.reach is None or isinstance(pairs, Ranges):
        return _MOST_ROWS
    return max(_LEAST_ROWS, min(pairs.reach.places // 4, _MOST_ROWS))


def _calls(
    pairs: Pairs, bias: PositionEncoding | None, block: Block, dtype: torch.dtype, masks: Masks
) -> Iterator[tuple[slice, Tensor | None, bool]]:
    """The calls of the kernel that make up a block: columns, mask ``[1 or rows, 1 or heads, rows, columns]``, and
    whether it is the causal one. ``masks``: those that other blocks share."""
    columns = block.columns
    width = columns.stop - columns.start
    if bias is None and pairs.square(block):
        yield columns, None, True
        return
    if bias is None and (pairs.all_visible or block.free >= width):
        yield columns, None, False
        return
    if bias is None and block.free >= _FREE_COLUMNS:
        middle = columns.start + block.free
        yield slice(columns.start, middle), None, False
        columns = slice(middle, columns.stop)
        block = dataclasses.replace(block, columns=columns, free=0)
    pattern = pairs.pattern(block) if bias is None else None
    if pattern in masks:
        yield columns, masks[pattern], False
        return
    # in half precision the least number is not far enough from scores
    dtype = torch.promote_types(dtype, torch.float32)
    visible = pairs.visible(block)
    added = None if bias is None else bias.position_bias(pairs.alignment(block))
    added = torch.zeros((), dtype=dtype, device=visible.device) if added is None else added.to(dtype)
    mask = torch.where(visible, added, torch.finfo(dtype).min)
    if pattern is not None:
        masks[pattern] = mask
    yield columns, mask, False


def _joined(o: Tensor, total: Tensor, new_o: Tensor, new_total: Tensor) -> tuple[Tensor, Tensor]:
    """Two softmaxes as one; outputs ``[..., head_dim]``, logarithms of sums ``[..., 1]``."""
    both = torch.logaddexp(total, new_total)
    return o * torch.exp(total - both) + new_o * torch.exp(new_total - both), both


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention and the logarithm of its sum, ``[batch, heads, q_time, head_dim]`` and ``[batch, heads, q_time]``."""
    return (flash if q.device.type == "cpu" else by_hand)(q, k, v, causal, mask)


def _attention_backward(
    d_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, total: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; ``o`` and ``total`` may be those of a softmax over more keys than these."""
    backward = flash_backward if q.device.type == "cpu" else by_hand_backward
    return backward(d_o, q, k, v, o, total, causal, mask)


def by_hand(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same from products, for other devices."""
    scores = _scores(q, k, mask, causal)
    total = scores.logsumexp(-1)
    return torch.matmul(torch.exp(scores - total[..., None]).to(v.dtype), v), total


def by_hand_backward(
    d_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, total: Tensor, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    weights = torch.exp(_scores(q, k, mask, causal) - total[..., None])
    d_v = torch.matmul(weights.to(v.dtype).transpose(-1, -2), d_o)
    d_weights = torch.matmul(d_o, v.transpose(-1, -2)).to(weights.dtype)
    own = (d_o.to(weights.dtype) * o.to(weights.dtype)).sum(-1, keepdim=True)
    d_scores = (weights * (d_weights - own) * q.shape[-1] ** -0.5).to(q.dtype)
    return torch.matmul(d_scores, k), torch.matmul(d_scores.transpose(-1, -2), q), d_v


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    scores = wide(torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)))
    if mask is not None:
        scores = scores + mask
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
    return scores
