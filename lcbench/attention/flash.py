"""The fused kernel of a CPU with the softmax's normaliser, so that one softmax can be put together from parts.

    o_i = sum_j exp(s_ij - l_i) v_j,   l_i = log sum_j exp(s_ij),   s = q k^T / sqrt(head_dim)

Dao, Fu, Ermon, Rudra, Re, "FlashAttention", 2022, arXiv 2205.14135. ``scaled_dot_product_attention`` has l too and
keeps it to itself. Parts with (o, l) of their own, of the same queries over other keys, are one softmax:
``l = log sum_p exp(l_p)`` and ``o = sum_p exp(l_p - l) o_p``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

#: channels that carry the normaliser's gradient through the kernel; more than one, for its alignment
_CHANNELS = 8


def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """o ``[batch, heads, q_time, head_dim]`` and l ``[batch, heads, q_time]``, float32 at least; no gradient.

    Args:
        q: ``[batch, heads, q_time, head_dim]``.
        k, v: ``[batch, heads, k_time, head_dim]``.
        causal: whether query t sees keys 0 to t only.
        mask: added to the scores, ``[1 or batch, 1 or heads, q_time, k_time]``, of the dtype of ``q``; not with
            ``causal``.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask)


def flash_backward(
    d_o: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    normaliser: Tensor,
    causal: bool,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v. With ``P = exp(s - normaliser)``:

        dV = P^T dO,   dS = P * (dO V^T - rowsum(dO * O)),   dQ = c dS K,   dK = c dS^T Q

    ``o`` and ``normaliser`` may be those of a softmax over more keys than ``k``: then P are its weights on these keys,
    and the gradients those of its part.

    Args:
        d_o: gradient of o, ``[batch, heads, q_time, head_dim]``.
        normaliser: ``[batch, heads, q_time]``.
        scale: c; None for ``head_dim ** -0.5``.
        q, k, v, o, causal, mask: as of ``flash``.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        d_o, q, k, v, o, normaliser, 0.0, causal, attn_mask=mask, scale=scale
    )


class Flash(torch.autograd.Function):
    """``(q, k, v, causal, mask) -> (o, l)``, as ``flash``, with the gradients of both; none for the mask.

    The gradient of l adds ``P dl`` to dS, which is ``rowsum(dO * O) - dl`` in place of ``rowsum(dO * O)``: so the
    backward kernel reads a channel more, in which dO is 1, O is ``-dl`` and V is 0.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        o, normaliser = flash(q, k, v, causal, mask)
        ctx.save_for_backward(q, k, v, mask, o, normaliser)
        ctx.causal = causal
        return o, normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor, d_normaliser: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, o, normaliser = ctx.saved_tensors
        width, more = q.shape[-1], (0, _CHANNELS)
        d_o, o, q, k, v = (pad(tensor, more) for tensor in (d_o, o, q, k, v))
        d_o[..., width] = 1
        o[..., width] = -d_normaliser
        found = flash_backward(d_o, q, k, v, o, normaliser, ctx.causal, mask, width**-0.5)
        return *(gradient[..., :width] for gradient in found), None, None
