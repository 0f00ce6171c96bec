"""Softmax attention of groups of queries over keys that are gathered for each group.

    o_i = sum_j softmax_j(c * q'_i . k'_j + bias_ij) v_j,  j over all parts that the group reads

``scoring.attend`` reads one run of keys beside the queries. Here a group reads several parts at once: blocks from
anywhere, summaries of blocks, keys that differ from head to head. What is gathered is a copy, so it lives for one
group at a time: the backward pass gathers and weighs again, and adds each group's gradients to those of the whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention

from lcbench.attention.precision import wide, without_autocast
from lcbench.errors import ConfigurationError
from lcbench.position.base import Alignment, PositionEncoding

#: numbers kept for the backward pass, the first groups': a constant (64 MiB in float32), so memory is linear in length
_KEPT = 2**24

G = TypeVar("G")


@dataclass(frozen=True)
class Part:
    """Keys that a group of queries reads.

    Args:
        k: rotated, ``[rows, heads, keys, head_dim]``.
        v: ``[rows, heads, keys, head_dim]``.
        plain_k: before rotation.
        features: see ``PositionEncoding.key_features``; ``[rows, heads, keys, any]``, or None.
        visible: bool, ``[1 or rows, 1 or heads, q_time, keys]``.
        alignment: where queries and keys stand, ``[rows, q_time]`` and ``[rows, keys]``; where heads are ``apart``,
            ``[rows * heads, ...]``.
        apart: whether each head's keys stand at places of their own.
        position: the encoding of these keys.
    """

    k: Tensor
    v: Tensor
    plain_k: Tensor
    features: Tensor | None
    visible: Tensor
    alignment: Alignment
    apart: bool
    position: PositionEncoding

    def bias(self, q: Tensor, scores: Tensor | None) -> Tensor | None:
        """What the encoding adds, ``[1 or rows, 1 or heads, q_time, keys]``; None if nothing.

        ``q``: unrotated; ``scores``: ``c * s``, needed where the encoding reads content, None where it does not.
        """
        rows, heads = self.k.shape[:2]
        found = self.position.position_bias(self.alignment)
        if found is not None and self.apart:
            found = _of_own_head(found.unflatten(0, (rows, heads)))
        if scores is None:
            return found
        visible = self.visible.expand(rows, heads, -1, -1) if self.apart else self.visible

        def own(tensor: Tensor) -> Tensor:
            """Of heads that are apart, each one as a row, which holds it in every head's place."""
            return tensor.flatten(0, 1)[:, None].expand(-1, heads, -1, -1) if self.apart else tensor

        content = self.position.content_bias(
            own(q),
            own(self.plain_k),
            own(scores),
            None if self.features is None else own(self.features),
            self.alignment,
            visible.flatten(0, 1)[:, None] if self.apart else visible,
        )
        if self.apart:
            content = _of_own_head(content.unflatten(0, (rows, heads)))
        return content if found is None else found + content


def _of_own_head(tensor: Tensor) -> Tensor:
    """Of ``[rows, heads, 1 or heads, q_time, keys]`` what each head has in its own place, ``[rows, heads, ...]``."""
    return tensor[:, :, 0] if tensor.shape[2] == 1 else tensor.diagonal(dim1=1, dim2=2).movedim(-1, 1)


def weigh(
    q: Tensor,
    plain_q: Tensor,
    parts: Sequence[Part],
    *,
    reads_content: bool,
    dropout: float,
    seed: int,
    ragged: bool,
) -> Tensor:
    """One softmax over all ``parts``.

    Args:
        q: rotated queries, ``[rows, heads, q_time, head_dim]``.
        plain_q: before rotation.
        parts: what they read.
        reads_content: whether scores need ``content_bias``.
        dropout: probability of dropping a weight.
        seed: of what is dropped; the same gives the same again.
        ragged: whether a query may see nothing.

    Returns:
        ``[rows, heads, q_time, head_dim]``; 0 where a query sees no key.
    """
    visible = (
        torch.cat([part.visible.expand(*_most(parts), -1, -1) for part in parts], -1)
        if len(parts) > 1
        else parts[0].visible
    )
    v = torch.cat([part.v for part in parts], 2) if len(parts) > 1 else parts[0].v
    if not reads_content and dropout == 0:
        k = torch.cat([part.k for part in parts], 2) if len(parts) > 1 else parts[0].k
        mask = torch.where(visible, _biases(plain_q, parts, None, q.dtype), torch.finfo(q.dtype).min)
        o = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        each = [_scores(q, part) for part in parts]
        biases = _biases(plain_q, parts, each if reads_content else None, each[0].dtype)
        scores = torch.cat(each, -1) + biases
        weights = torch.softmax(scores.masked_fill(~visible, torch.finfo(scores.dtype).min), -1)
        if dropout:
            weights = weights * _kept(weights, dropout, seed)
        o = torch.matmul(weights.to(v.dtype), v)
    return o.masked_fill(~visible.any(-1, keepdim=True), 0) if ragged else o


def _most(parts: Sequence[Part]) -> tuple[int, int]:
    return max(part.visible.shape[0] for part in parts), max(part.visible.shape[1] for part in parts)


def _scores(q: Tensor, part: Part) -> Tensor:
    """``c * q . k``, the least finite number where hidden, ``[rows, heads, q_time, keys]``."""
    scores = wide(torch.matmul(q * q.shape[-1] ** -0.5, part.k.transpose(-1, -2)))
    return scores.masked_fill(~part.visible, torch.finfo(scores.dtype).min)


def _biases(plain_q: Tensor, parts: Sequence[Part], scores: list[Tensor] | None, dtype: torch.dtype) -> Tensor:
    """What encodings add to all keys; one number, 0, if that is nothing."""
    found = [part.bias(plain_q, None if scores is None else scores[n]) for n, part in enumerate(parts)]
    some = [bias for bias in found if bias is not None]
    if not some:
        return torch.zeros((), dtype=dtype, device=plain_q.device)
    rows, heads = max(bias.shape[0] for bias in some), max(bias.shape[1] for bias in some)
    shapes = [(rows, heads, plain_q.shape[2], part.k.shape[2]) for part in parts]
    zero = torch.zeros((), dtype=some[0].dtype, device=plain_q.device)
    whole = [(zero if bias is None else bias).expand(shape) for bias, shape in zip(found, shapes, strict=True)]
    return torch.cat(whole, -1).to(dtype)


def _kept(weights: Tensor, dropout: float, seed: int) -> Tensor:
    """Dropout's factors: the same again in the backward pass."""
    if weights.device.type == "meta":
        return torch.ones_like(weights)
    generator = torch.Generator(weights.device).manual_seed(seed)
    drawn = torch.rand(weights.shape, generator=generator, device=weights.device)
    return (drawn >= dropout).to(weights.dtype) / (1 - dropout)


class Gathering(ABC, Generic[G]):
    """How a call falls into groups, and what each of them reads.

    Args:
        encodings: those whose parameters the scores read.
    """

    def __init__(self, encodings: Sequence[PositionEncoding]) -> None:
        # an encoding that is shared stands here twice, its parameters do not
        found = {id(parameter): parameter for encoding in encodings for parameter in encoding.parameters()}
        self.parameters = list(found.values())

    @abstractmethod
    def groups(self) -> Iterator[G]:
        """All groups, the same each time."""

    @abstractmethod
    def take(self, tensors: Sequence[Tensor | None], group: G) -> list[Tensor | None]:
        """What the group reads of each of ``tensors``."""

    @abstractmethod
    def give(self, sums: Sequence[Tensor | None], group: G, gradients: Sequence[Tensor | None]) -> None:
        """Add the group's ``gradients`` to those of the whole tensors, in place."""

    @abstractmethod
    def read(self, taken: Sequence[Tensor | None], group: G) -> Tensor:
        """What the group's queries read, differentiable by autograd, in the shape of the queries taken."""

    @abstractmethod
    def put(self, out: Tensor, group: G, o: Tensor) -> None:
        """Write what the group has read into ``out``, which has the shape of the queries."""

    @abstractmethod
    def find(self, out: Tensor, group: G) -> Tensor:
        """What ``put`` would have written, in the shape that ``read`` returns."""


@torch.compiler.disable
def gather(gathering: Gathering[Any], *tensors: Tensor | None) -> Tensor:
    """All groups; the first of ``tensors`` are the queries, whose shape the result has."""
    return _Gathered.apply(gathering, torch.is_grad_enabled(), len(tensors), *tensors, *gathering.parameters)


class _Gathered(torch.autograd.Function):
    """``gathering, differentiable, count, *tensors, *parameters -> output``."""

    @staticmethod
    def forward(ctx: Any, gathering: Gathering[Any], differentiable: bool, count: int, *arguments: Any) -> Tensor:
        tensors = arguments[:count]
        ctx.gathering, ctx.count, ctx.kept = gathering, count, {}
        ctx.save_for_backward(*arguments)
        room = _KEPT if differentiable and any(ctx.needs_input_grad) else 0
        out = torch.zeros_like(tensors[0])
        # hooks on saved tensors (of checkpointing, of offloading) are for the arguments
        with without_autocast(out.device), saved_tensors_hooks(_as_it_is, _as_it_is):
            for index, group in enumerate(gathering.groups()):
                taken = gathering.take(tensors, group)
                room -= sum(tensor.numel() for tensor in taken if tensor is not None)
                if room >= 0:
                    leaves = _leaves(taken)
                    with torch.enable_grad():
                        o = gathering.read(leaves, group)
                    ctx.kept[index] = (leaves, o)
                else:
                    o = gathering.read(taken, group)
                gathering.put(out, group, o.detach())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        gathering, tensors, d_out = ctx.gathering, ctx.saved_tensors[: ctx.count], d_out.contiguous()
        learned = [p for p in gathering.parameters if p.requires_grad]
        d_learned: dict[Tensor, Tensor] = {}
        sums = [None if t is None else torch.zeros_like(t, dtype=wide(t[:0]).dtype) for t in tensors]
        with without_autocast(d_out.device):
            for index, group in enumerate(gathering.groups()):
                leaves, o = ctx.kept.pop(index, (None, None))
                if leaves is None:
                    leaves = _leaves(gathering.take(tensors, group))
                    with torch.enable_grad():
                        o = gathering.read(leaves, group)
                places = [n for n, leaf in enumerate(leaves) if leaf is not None]
                read = [*(leaves[n] for n in places), *learned]
                found = torch.autograd.grad(o, read, gathering.find(d_out, group), allow_unused=True)
                gradients: list[Tensor | None] = [None] * len(leaves)
                for n, gradient in zip(places, found, strict=False):
                    gradients[n] = gradient
                gathering.give(sums, group, gradients)
                for parameter, gradient in zip(learned, found[len(places) :], strict=True):
                    if gradient is not None:
                        d_learned[parameter] = d_learned.get(parameter, 0) + gradient
        whole = (None if total is None else total.to(t.dtype) for total, t in zip(sums, tensors, strict=True))
        return None, None, None, *whole, *(d_learned.get(parameter) for parameter in gathering.parameters)


def _leaves(taken: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.detach().requires_grad_() for tensor in taken]


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def refuse_counting(position: PositionEncoding, mechanism: str) -> None:
    """Raise ``ConfigurationError`` for an encoding that counts over all keys up to the query."""
    if position.reads_between:
        raise ConfigurationError(
            f"position {type(position).__name__} counts all keys between a key and its query, and {mechanism} leaves "
            "some of them out; the closest choices are position=rope and position=t5."
        )
