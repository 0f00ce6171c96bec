"""Softmax attention in windows, where every block of queries stands to its keys as any other does.

    S = c Q K^T + M,   P = softmax(S),   O = P V

M is what the encoding adds, and the least number where a key is hidden. A block of b queries reads b + w - 1 keys
(both ways b + 2 (w - 1)); where positions are known and follow each other, one M serves all blocks, and where the
sequence begins or ends a part of it does. So it is made once, enters with the product, and its gradient is summed over
blocks:

    dV = P^T dO,   dM = dS = P * (dO V^T - rowsum(P * dO V^T)),   dQ = c dS K,   dK = c dS^T Q

On a CPU, products of this size are faster than the fused kernel with a mask, which has no gradient of M besides. The
weights of the first blocks are kept for the backward pass, as many numbers as queries, keys and values are: memory is
linear in length. Those of all others are made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcbench.attention.explicit import add_product, room_for_blocks
from lcbench.attention.pairs import Block, Pairs
from lcbench.attention.precision import without_autocast
from lcbench.attention.reach import Window
from lcbench.position.base import Alignment, PositionEncoding

#: queries in a block, at least and at most: with more of them most pairs would be hidden
_LEAST_ROWS, _MOST_ROWS = 32, 64
#: pairs of query and key, of all heads, that a block holds at most if there are several batch rows
_PAIRS = 3 * 2**17


def windowed(pairs: Pairs) -> bool:
    """Whether ``pairs`` are windows, the same ones in all batch rows."""
    return isinstance(pairs.reach, Window) and pairs.reach.floor is None and pairs.consecutive and not pairs.ragged


@torch.compiler.disable
def attend_windows(pairs: Pairs, position: PositionEncoding | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of rotated queries over rotated keys, which are ``windowed``.

    Args:
        pairs: which query sees which key.
        position: the encoding, if it has a bias; of distances only.
        q: ``[batch, heads, q_time, head_dim]``, float32 or float64, as k and v.
        k, v: ``[batch, heads, k_time, head_dim]``.

    Returns:
        ``[batch, heads, q_time, head_dim]``.
    """
    rows = min(q.shape[2], max(_LEAST_ROWS, min(_MOST_ROWS, pairs.most_columns(1) // 2)))
    before, columns = _width(pairs) - 1, rows + (1 if pairs.causal else 2) * (_width(pairs) - 1)
    distance = torch.arange(rows, device=q.device)[:, None] + before - torch.arange(columns, device=q.device)
    visible = (distance <= before) & (distance >= (0 if pairs.causal else -before))
    added = None
    if position is not None:
        at = torch.arange(columns, device=q.device)[None]
        added = position.position_bias(Alignment(at[:, before : before + rows], at, before))
    added = q.new_zeros(1, 1, 1, 1) if added is None else added.to(q.dtype)
    mask = torch.where(visible, added, torch.finfo(q.dtype).min)  # [1, 1 or heads, rows, columns]
    return _Windows.apply(pairs, rows, torch.is_grad_enabled(), q, k, v, mask)


def _width(pairs: Pairs) -> int:
    assert pairs.reach is not None
    return pairs.reach.places


class _Windows(torch.autograd.Function):
    """``pairs, queries in a block, whether there is a backward pass, q, k, v, mask -> output``; see the module."""

    @staticmethod
    def forward(
        ctx: Any, pairs: Pairs, rows: int, differentiable: bool, q: Tensor, k: Tensor, v: Tensor, mask: Tensor
    ) -> Tensor:
        ctx.pairs, ctx.rows, ctx.kept = pairs, rows, []
        ctx.save_for_backward(q, k, v, mask)
        room = room_for_blocks(q, k, v) if differentiable and any(ctx.needs_input_grad) else 0
        out = torch.empty_like(q)  # as q lies: heads are merged again
        with without_autocast(q.device):
            for block in _blocks(pairs, rows, q):
                weights = _weights(pairs, block, q, k, mask)
                out[block.of_queries] = torch.matmul(weights, v[block.of_keys])
                room -= weights.numel()
                if room >= 0:
                    ctx.kept.append(weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        pairs, (q, k, v, mask) = ctx.pairs, ctx.saved_tensors
        kept, scale = iter(ctx.kept), q.shape[-1] ** -0.5
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        d_mask = torch.zeros_like(mask) if ctx.needs_input_grad[6] else None
        with without_autocast(q.device):
            for block in _blocks(pairs, ctx.rows, q):
                weights, of_keys, d_o = next(kept, None), block.of_keys, d_out[block.of_queries]
                if weights is None:
                    weights = _weights(pairs, block, q, k, mask)
                d_weights = torch.matmul(d_o, v[of_keys].transpose(-1, -2))
                add_product(d_v[of_keys], weights.transpose(-1, -2), d_o)
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, q.dtype)
                if d_mask is not None:
                    of_block = _of_block(d_mask, pairs, block)
                    of_block.add_(d_scores.sum_to_size(of_block.shape))
                d_q[block.of_queries] = torch.matmul(d_scores, k[of_keys]).mul_(scale)
                add_product(d_k[of_keys], d_scores.transpose(-1, -2), q[block.of_queries], scale)
        ctx.kept = []
        return None, None, None, d_q, d_k, d_v, d_mask


def _blocks(pairs: Pairs, rows: int, q: Tensor) -> Iterator[Block]:
    per_row = q.shape[1] * rows * pairs.most_columns(rows)
    return pairs.blocks(max(1, min(len(q), _PAIRS // per_row)), rows)


def _weights(pairs: Pairs, block: Block, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """``[batch, heads, rows, columns]``."""
    of_q, of_k, of_block = q[block.of_queries], k[block.of_keys], _of_block(mask, pairs, block)
    shape = (*of_q.shape[:3], of_k.shape[2])
    added = of_block.expand(shape).flatten(0, 1)
    pair = of_q.flatten(0, 1), of_k.flatten(0, 1).transpose(1, 2)
    return torch.softmax(torch.baddbmm(added, *pair, alpha=q.shape[-1] ** -0.5), -1).view(shape)


def _of_block(mask: Tensor, pairs: Pairs, block: Block) -> Tensor:
    """What of the mask of a whole block is that of ``block``."""
    rows, columns = block.rows, block.columns
    first = pairs.offset + rows.start - (_width(pairs) - 1)  # the key of the mask's first column
    return mask[..., : rows.stop - rows.start, columns.start - first : columns.stop - first]
