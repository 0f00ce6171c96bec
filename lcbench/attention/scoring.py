"""The one scoring function: softmax attention for every mechanism and every position encoding.

    o_i = sum_j softmax_j(c * q'_i . k'_j + bias_ij) v_j        (Vaswani et al. 2017, arXiv 1706.03762)

q', k' are the rotated queries and keys, the bias is what the encoding adds. Two paths give the same numbers:

- fused: ``scaled_dot_product_attention``, wherever the bias needs positions only and nothing has to be learned in it;
- explicit (``explicit.py``): for a bias that reads queries, keys or scores, or is trained.

Both take blocks of queries and only the keys that a block may see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lcbench.attention.base import Context, Looks
from lcbench.attention.cache import KeyValues, along_time
from lcbench.attention.explicit import Run, attention_looks, attention_received, explicit, explicit_part
from lcbench.attention.flash import Flash
from lcbench.attention.pairs import Block, Pairs
from lcbench.attention.reach import Reach, Segment
from lcbench.attention.windows import attend_windows, windowed
from lcbench.position.base import PositionEncoding

#: queries in a block, at most and at least: with a reach, as many as it has places, or most pairs would be hidden
_FUSED_ROWS, _LEAST_ROWS = 256, 64
#: queries in a block that needs no mask: a whole segment, because the kernel's memory is linear in it
_SQUARE_ROWS = 4096
#: what windows are read in by products of their own
_PRECISE = torch.float32, torch.float64


def attend(
    q: Tensor,
    context: Context,
    keys: KeyValues,
    position: PositionEncoding,
    *,
    causal: bool = True,
    reach: Reach | None = None,
    dropout: float = 0.0,
    vectors: Tensor | None = None,
) -> Tensor:
    """Softmax attention of ``q`` over ``keys``.

    Args:
        q: queries before rotation, ``[batch, heads, q_time, head_dim]``.
        context: describes the queries, ``[batch, q_time]``.
        keys: all keys, those of the queries included; the last query is aligned with the last key. With ``reach``,
            keys of earlier calls are as ``KeyValues.recent`` leaves them.
        position: the layer's encoding.
        causal: whether a query sees only keys up to its own place in the buffer.
        reach: how far back (without ``causal``, forward too) a query sees, in positions; None: everything.
        dropout: probability of dropping an attention weight; 0 outside training.
        vectors: ``distance_vectors`` of as many queries and no fewer keys, for a caller who attends several times;
            None: they are made here. Only with ``causal``.

    Returns:
        ``[batch, heads, q_time, head_dim]``; 0 where a query sees no key.
    """
    # where nothing came before, a row of one document needs no mask against others
    alike = reach is None and vectors is None and keys.documents is context.documents
    whole = context.whole_rows if alike and keys.length == q.shape[2] else 0
    if not whole:
        return _ordered(q, context, keys, position, causal, reach, dropout, vectors, False)[0]
    spans = [slice(0, whole), slice(whole, len(q))] if whole < len(q) else [slice(0, whole)]
    sizes = [span.stop - span.start for span in spans]
    outputs = []
    for span, own_q, k, v in zip(spans, q.split(sizes), keys.k.split(sizes), keys.v.split(sizes), strict=True):
        cut = _rows(span)
        facts, own = context.map(cut), replace(keys.map(cut), k=k, v=v)
        if span.start == 0:
            facts, own = replace(facts, documents=None), replace(own, documents=None)
        outputs.append(_ordered(own_q, facts, own, position, causal, reach, dropout, vectors, False)[0])
    return torch.cat(outputs)


def _rows(span: slice) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[span]


def attend_part(
    q: Tensor,
    context: Context,
    keys: KeyValues,
    position: PositionEncoding,
    *,
    causal: bool = True,
    reach: Reach | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``attend`` over some of the keys, and what is needed to make one softmax of several such parts.

    Returns:
        ``attend``'s output, and the log of the softmax's denominator, ``[batch, heads, q_time]``, in float32 at least:
        -inf where a query sees no key. Both have gradients.
    """
    o, normaliser = _ordered(q, context, keys, position, causal, reach, dropout, None, True)
    assert normaliser is not None
    return o, normaliser


def _ordered(
    q: Tensor,
    context: Context,
    keys: KeyValues,
    position: PositionEncoding,
    causal: bool,
    reach: Reach | None,
    dropout: float,
    vectors: Tensor | None,
    normaliser: bool,
) -> tuple[Tensor, Tensor | None]:
    if causal and q.shape[2] > keys.length:
        raise ValueError(f"{q.shape[2]} queries are aligned with the end of only {keys.length} keys")
    if q.numel() == 0:
        return q, q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))
    if reach is not None and context.padding is not None:
        # padding between two tokens would push what the later one sees out of its reach
        order = context.padding.long().argsort(dim=1, stable=True)  # [batch, q_time], tokens first
        inverse = order.argsort(dim=1)
        context = context.map(lambda tensor: tensor.gather(1, order))
        keys = keys.reorder_last(order)
        o, sums = _attend(along_time(q, order), context, keys, position, causal, reach, dropout, vectors, normaliser)
        return along_time(o, inverse), None if sums is None else along_time(sums[..., None], inverse)[..., 0]
    return _attend(q, context, keys, position, causal, reach, dropout, vectors, normaliser)


def _attend(
    q: Tensor,
    context: Context,
    keys: KeyValues,
    position: PositionEncoding,
    causal: bool,
    reach: Reach | None,
    dropout: float,
    vectors: Tensor | None,
    normaliser: bool,
) -> tuple[Tensor, Tensor | None]:
    pairs = Pairs.of(context, keys, causal, reach)
    rotated_q, rotated_k = position.rotate(q, keys.k, context.positions, keys.positions)
    reads_content = position.reads_content(keys.positions)
    has_bias = type(position).position_bias is not PositionEncoding.position_bias
    learns_bias = has_bias and torch.is_grad_enabled() and any(p.requires_grad for p in position.parameters())
    # on a CPU the fused kernel drops nothing; elsewhere it keeps the normaliser to itself
    unable = normaliser if q.device.type != "cpu" else dropout > 0
    plain = not (reads_content or normaliser or dropout > 0)
    if plain and q.dtype in _PRECISE and windowed(pairs) and (learns_bias or q.device.type == "cpu"):
        return attend_windows(pairs, position if has_bias else None, rotated_q, rotated_k, keys.v), None
    if reads_content or learns_bias or unable:
        seed = int(torch.randint(2**62, (), device="cpu")) if dropout > 0 else 0
        run = Run(pairs, position, reads_content, has_bias, dropout, seed, torch.is_grad_enabled())
        if normaliser:
            return explicit_part(run, q, keys, rotated_q, rotated_k, vectors)
        return explicit(run, q, keys, rotated_q, rotated_k, vectors), None
    kernel = _with_normaliser if normaliser else _without
    o, *sums = _fused(pairs, position if has_bias else None, rotated_q, rotated_k, keys.v, dropout, kernel)
    return o, sums[0] if sums else None


@torch.no_grad()
def received(q: Tensor, context: Context, keys: KeyValues, position: PositionEncoding) -> Tensor:
    """What attention each key gets, summed over all queries that are not padding; a number without gradient.

    Args:
        q, context, keys, position: as for ``attend``, which is causal here.

    Returns:
        ``[batch, heads, k_time]``, in float32 at least.
    """
    run, rotated = _to_look_at(q, context, keys, position, None)
    asked = torch.ones_like(context.positions, dtype=torch.bool) if context.padding is None else ~context.padding
    return attention_received(run, q, keys, *rotated, asked)


@torch.no_grad()
def looks(
    q: Tensor, context: Context, keys: KeyValues, position: PositionEncoding, *, reach: Reach | None = None
) -> Looks:
    """What ``attend``, of the same arguments and causal, weighs values by; numbers without gradient.

    Of the size of all pairs: for an example to be looked at. There is no padding where ``reach`` is given.
    """
    run, rotated = _to_look_at(q, context, keys, position, reach)
    return attention_looks(run, q, keys, *rotated)


def _to_look_at(
    q: Tensor, context: Context, keys: KeyValues, position: PositionEncoding, reach: Reach | None
) -> tuple[Run, tuple[Tensor, Tensor]]:
    """A causal call of the explicit path without dropout, and rotated queries and keys."""
    pairs = Pairs.of(context, keys, True, reach)
    rotated = position.rotate(q, keys.k, context.positions, keys.positions)
    has_bias = type(position).position_bias is not PositionEncoding.position_bias
    return Run(pairs, position, position.reads_content(keys.positions), has_bias, 0.0, 0, False), rotated


#: ``(q, k, v, mask or None, causal, dropout) -> o`` and perhaps the normaliser, all with time as axis 2
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float], tuple[Tensor, ...]]


def _without(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> tuple[Tensor, ...]:
    return (scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal),)


def _with_normaliser(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> tuple[Tensor, ...]:
    return Flash.apply(q, k, v, causal, mask)


def _fused(
    pairs: Pairs, position: PositionEncoding | None, q: Tensor, k: Tensor, v: Tensor, dropout: float, kernel: Kernel
) -> tuple[Tensor, ...]:
    """The fused kernel; ``position`` only if it has a bias. A mask is made for one block of queries at a time."""
    if position is None and pairs.all_visible:
        return kernel(q, k, v, None, False, dropout)
    if position is None and pairs.reach is None and pairs.square(pairs.whole):
        return kernel(q, k, v, None, True, dropout)

    def read(q: Tensor, k: Tensor, v: Tensor, block: Block) -> tuple[Tensor, ...]:
        if position is None and pairs.square(block):
            return kernel(q, k, v, None, True, dropout)
        visible = pairs.visible(block)
        bias = None if position is None else position.position_bias(pairs.alignment(block))
        bias = q.new_zeros(()) if bias is None else bias.to(q.dtype)
        mask = torch.where(visible, bias, torch.finfo(q.dtype).min)
        o, *sums = kernel(q, k, v, mask, False, dropout)
        if not pairs.ragged:
            return o, *sums
        # a query that sees nothing got the mean of all values
        blind = ~visible.any(-1)
        return o.masked_fill(blind[..., None], 0), *(each.masked_fill(blind, -torch.inf) for each in sums)

    bare = position is None and isinstance(pairs.reach, Segment) and pairs.reach.memory == 0 and not pairs.ragged
    rows = _SQUARE_ROWS if bare else _FUSED_ROWS
    if pairs.reach is not None and not bare:
        rows = max(_LEAST_ROWS, min(rows, pairs.reach.places))
    blocks = list(pairs.blocks(q.shape[0], rows))
    # the kernel keeps its mask for the backward pass; together they must not outgrow what it keeps of q, k and v
    per_pair = (q.shape[0] if pairs.ragged else 1) * (1 if position is None else q.shape[1])
    kept = per_pair * sum(block.pairs for block in blocks if position is not None or not pairs.square(block))
    outputs = []
    q_spans, k_spans = [block.rows for block in blocks], [block.columns for block in blocks]
    # without a reach a block's keys are all that came before: slices, which copy nothing
    cut = _slices if pairs.reach is None else _pieces
    again = kept > q.numel() + k.numel() + v.numel() and torch.is_grad_enabled()
    for block, of_q, of_k, of_v in zip(blocks, _pieces(q, q_spans), cut(k, k_spans), cut(v, k_spans), strict=True):
        if again:
            outputs.append(checkpoint(read, of_q, of_k, of_v, block, use_reentrant=False))
        else:
            outputs.append(read(of_q, of_k, of_v, block))
    return tuple(torch.cat(each, 2) for each in zip(*outputs, strict=True))


def _slices(tensor: Tensor, spans: Sequence[slice]) -> list[Tensor]:
    """Of ``[batch, heads, time, any]`` those times."""
    return [tensor[:, :, span] for span in spans]


def _pieces(tensor: Tensor, spans: Sequence[slice]) -> list[Tensor]:
    """The same, for spans of a bounded length.

    The backward pass of every slice fills a tensor of the whole length, so that of many slices is quadratic; that of
    one split is one concatenation.
    """
    edges = sorted({0, tensor.shape[2], *(edge for span in spans for edge in (span.start, span.stop))})
    pieces = tensor.split([stop - start for start, stop in pairwise(edges)], 2)
    number = {edge: i for i, edge in enumerate(edges)}
    of_spans = [pieces[number[span.start] : number[span.stop]] for span in spans]
    return [torch.cat(own, 2) if len(own) > 1 else own[0] for own in of_spans]
