"""Dilated attention (LongNet): dense nearby, ever sparser further away, in one softmax.

Ding, Ma, Dong, Zhang, Huang, Wang, Zheng, Wei, "LongNet: Scaling Transformers to 1,000,000,000 Tokens", 2023, arXiv
2307.02486. A pattern (w, r) cuts a document into segments of w positions and keeps every r-th of each; head j keeps

    K_ij = {p : (p mod w_i) mod r_i = j mod r_i}                           of pattern i

and there, and only there, it attends densely within the segment, queries, keys and values alike:

    O_i,t = softmax(q_t K^T / sqrt(head_dim)) V over the keys of K_ij in the segment of t, up to t
    l_i,t = the logarithm of that softmax's denominator;  -inf where t is not in K_ij
    O_t   = sum_i alpha_i,t O_i,t,   alpha_t = softmax over patterns of l_t          y = W_o O

That is one softmax over the multiset of all patterns' keys: a key counts once for every pattern that has it, a token
itself in every pattern that keeps it. Where no pattern keeps a token, as can be without one of r = 1, O_t is 0. With
lengths and dilations that both grow by the same factor, time is linear in length, and any two tokens are a
logarithmic number of layers apart.

Segments do not slide: the first token of a segment of the densest pattern sees itself alone there. Of r offsets only
those that a head has are kept, so r should divide the number of heads. The released code gives neighbouring heads the
same offset; with more than one pattern that is another mechanism than the paper's, which this is. It also takes alpha
as a constant in the backward pass; ``detach_mixture`` does so here.

Without a bias and on a CPU all patterns go through the fused kernel with o and l merged in place, and the backward
pass needs no pattern's own output: given O and ``l = log sum_i exp(l_i)`` of the whole, the kernel's backward pass
over a pattern's keys gives that pattern's share of the gradients of the one softmax. Anything else (biases, padding,
documents, positions that jump, other devices) goes through ``attend_part``, pattern by pattern.

The state is, for every pattern, the kept keys and values of as many tokens as a segment has before its last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.blocks import on
from lcbench.attention.cache import KeyValues, along_time
from lcbench.attention.flash import flash, flash_backward
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.precision import wide
from lcbench.attention.reach import Positions, Reach, Segment
from lcbench.attention.scoring import attend_part
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.units import Length

#: positions of whole segments that go through the kernel together: its results must not outgrow what is kept
_PLACES = 2**15
#: tokens that are read at a time where no gradient is asked for: what is made of them then fits a CPU's cache
_PIECE = 2**13


@dataclass(frozen=True)
class Kept(Reach):
    """The own segment of ``length`` positions, of which a sequence has every ``dilation``-th only."""

    length: int
    dilation: int

    @property
    def places(self) -> int:  # type: ignore[override]
        return -(-self.length // self.dilation)

    def since(self, positions: Positions) -> Positions:
        return positions - positions % self.length

    def until(self, positions: Positions) -> Positions:
        return positions - positions % self.length + (self.length - 1)


@dataclass(frozen=True)
class Group:
    """Heads that keep the same positions in a pattern.

    Args:
        pattern: number of the pattern.
        length: w.
        dilation: r.
        offset: s, of the heads.
        n_heads: of the layer.
    """

    pattern: int
    length: int
    dilation: int
    offset: int
    n_heads: int

    @property
    def heads(self) -> slice:
        return slice(self.offset, None, self.dilation)

    @property
    def width(self) -> int:
        """Number of heads."""
        return len(range(self.offset, self.n_heads, self.dilation))

    @property
    def reach(self) -> Reach:
        return Segment(self.length) if self.dilation == 1 else Kept(self.length, self.dilation)

    def keeps(self, positions: Any) -> Any:
        """Which of ``positions``, an array or a tensor, are kept."""
        return positions % self.length % self.dilation == self.offset

    def count(self, until: int) -> int:
        """How many of the positions before ``until`` are kept."""
        segments, rest = divmod(until, self.length)
        return segments * self._kept(self.length) + self._kept(rest)

    @property
    def carried(self) -> int:
        """Tokens of the segment that the last of them sees before it, at most."""
        return self.reach.places - 1

    def _kept(self, places: int) -> int:
        """How many of the first ``places`` of a segment."""
        return max(0, -(-(places - self.offset) // self.dilation))

    def parts(self, start: int, time: int, since: int) -> Iterator[Part]:
        """``time`` tokens from position ``start``: the rest of an unfinished segment, of which calls before have read
        what lies from position ``since`` on, then whole segments, then what is left."""
        stop = min(time, -start % self.length)
        spans = [(0, stop, 1)] if stop else []
        together = max(1, _PLACES // self.length)
        for segments in (together, 1):
            while (time - stop) // self.length >= segments:
                spans.append((stop, stop + segments * self.length, segments))
                stop = spans[-1][1]
        if stop < time:
            spans.append((stop, time, 1))
        for a, b, segments in spans:
            opens = start + a - (start + a) % self.length
            first = (self.offset - start - a + opens) % self.dilation
            if first < b - a:
                past = self.count(start + a) - self.count(max(opens, min(since, start + a)))
                yield Part(self, slice(a, b), segments, first, past)


@dataclass(frozen=True)
class Part:
    """Kept tokens of one group in one unfinished, or in several whole segments.

    Args:
        group: whose they are.
        span: where they lie in the call, the others among them.
        segments: how many.
        first: place of the first kept one.
        past: how many kept ones of the segment calls before have read.
    """

    group: Group
    span: slice
    segments: int
    first: int
    past: int

    def of(self, tensor: Tensor) -> Tensor:
        """Of ``[batch, heads, time, ...]``, the kept ones: ``[batch, group's heads, segments, kept, ...]``, a view."""
        apart = tensor[:, self.group.heads, self.span].unflatten(2, (self.segments, -1))
        return apart[:, :, :, self.first :: self.group.dilation]


@dataclass(frozen=True)
class DilatedState(State):
    """
    Args:
        groups: for every pattern, and for every offset that heads have in it, the last kept keys and values of those
            heads.
        since: where the consecutive positions that were read begin; None where rows differ, positions jumped, or
            there were documents or padding.
    """

    groups: tuple[KeyValues, ...]
    since: int | None

    @property
    def plain(self) -> bool:
        """Whether a row's places say which positions it has read."""
        return self.since is not None and all(
            group.padding is None and group.documents is None for group in self.groups
        )


class Dilated(MultiHead):
    """Dilated attention over any list of patterns.

    Args:
        shape: the network's shape.
        position: the layer's encoding; it sees true positions. One that counts keys (CoPE) counts those of a pattern.
        segments: w of every pattern. The paper's language models: 2048, 4096, 8192, 16384, 32768.
        dilations: r of every pattern, at most its w. The paper's: 1, 2, 4, 6, 12.
        detach_mixture: no gradient through the weights of patterns, as in the released code.

    Raises:
        ConfigurationError: for lists of different lengths, and sizes that keep nothing.
    """

    reads_together = True
    footprint = "H (dk + dv) sum_i (w_i / r_i - 1)"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        segments: Sequence[Length] = (64, 128, 256),
        dilations: Sequence[int] = (1, 2, 4),
        detach_mixture: bool = False,
    ) -> None:
        super().__init__(shape, position)
        if len(segments) != len(dilations) or not segments:
            raise ConfigurationError(
                f"attention.segments={list(segments)} and attention.dilations={list(dilations)} must name a length "
                "and a dilation for every pattern, such as attention.segments=[64,256] attention.dilations=[1,4]."
            )
        for w, r in zip(segments, dilations, strict=True):
            if w < 1:
                raise ConfigurationError(f"attention.segments={list(segments)}: {w} holds nothing; the least is 1.")
            if not 1 <= r <= w:
                closest = min(max(r, 1), w)
                raise ConfigurationError(
                    f"attention.dilations={list(dilations)}: {r} must lie between 1 and its segment's length {w}; "
                    f"the closest is {closest}."
                )
        self.segment: int = max(segments)
        self.detach_mixture = detach_mixture
        self.groups = [
            Group(number, w, r, offset, shape.n_heads)
            for number, (w, r) in enumerate(zip(segments, dilations, strict=True))
            for offset in range(min(r, shape.n_heads))
        ]

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is a ``DilatedState``."""
        before = state if isinstance(state, DilatedState) else None
        start, since = context.start, None
        if start is not None and (before is None or before.plain):
            since = start if before is None else before.since
        fused = x.device.type == "cpu" and self.dropped == 0 and self._only_rotates(context.positions)
        if start is None or since is None or not fused:
            q, new = self.project(x, context)
            o, groups = self._mixed(q, new, context, before)
            return AttentionOutput(self.merge(o), DilatedState(groups, since))
        if torch.is_grad_enabled() or context.together or x.shape[1] <= _PIECE:
            return AttentionOutput(*self._consecutive(x, context, start, since, before))
        y: Tensor | None = None
        for first in range(0, x.shape[1], _PIECE):
            piece = slice(first, first + _PIECE)
            where = Context(context.positions[:, piece])
            read, before = self._consecutive(x[:, piece], where, start + first, since, before)
            y = read.new_empty(x.shape) if y is None else y
            y[:, piece] = read
        assert y is not None
        return AttentionOutput(y, before)

    def _consecutive(
        self, x: Tensor, context: Context, start: int, since: int, before: DilatedState | None
    ) -> tuple[Tensor, DilatedState]:
        """The output for tokens that follow each other from position ``start``, ``[batch, time, d_model]``, and the
        state after them; what was read before begins at position ``since``."""
        q, new = self.project(x, context)
        o = self._merged(q, new, start, since, before, not self.both_ways(context))
        return self.merge(o), DilatedState(self._tails(new, start, before), since)

    def _only_rotates(self, positions: Tensor) -> bool:
        biased = type(self.position).position_bias is not PositionEncoding.position_bias
        return not biased and not self.position.reads_content(positions)

    def _merged(
        self, q: Tensor, new: KeyValues, start: int, since: int, before: DilatedState | None, causal: bool
    ) -> Tensor:
        """The mixture of consecutive tokens from position ``start``, ``[batch, heads, time, head_dim]``."""
        parts, past = [], []
        for number, group in enumerate(self.groups):
            for part in group.parts(start, q.shape[2], since):
                parts.append(part)
                if part.past:
                    assert before is not None
                    keys, positions = before.groups[number], before.groups[number].positions[:, -part.past :]
                    k = keys.k[:, :, -part.past :]
                    past += [self.position.rotate(k, k, positions, positions)[1], keys.v[:, :, -part.past :]]
        q, k = self.position.rotate(q, new.k, new.positions, new.positions)
        return _Merged.apply(parts, self.detach_mixture, causal, q, k, new.v, *past)

    def _tails(self, new: KeyValues, start: int, before: DilatedState | None) -> tuple[KeyValues, ...]:
        """What is kept of consecutive tokens from position ``start``."""
        tails, time = [], new.length
        for number, group in enumerate(self.groups):
            first = max(0, time - 2 * group.length)  # more than a segment's kept tokens lie behind it
            kept = first + np.flatnonzero(group.keeps(np.arange(start + first, start + time)))
            own = _taken(new, group, on(new.k.device, kept[max(0, len(kept) - group.carried) :]))
            tails.append((own if before is None else before.groups[number].append(own)).recent(group.carried))
        return tuple(tails)

    def _mixed(
        self, q: Tensor, new: KeyValues, context: Context, before: DilatedState | None
    ) -> tuple[Tensor, tuple[KeyValues, ...]]:
        """The mixture ``[batch, heads, time, head_dim]``, pattern by pattern, and what is kept of the tokens.

        Kept tokens are gathered for all groups at once and brought back at once: their number is what counts, and not
        the number of patterns times the length.
        """
        batch, heads, time, width = q.shape
        chosen = [Chosen.of(group, context) for group in self.groups]
        of_head = torch.arange(batch * heads, device=q.device).view(batch, heads, 1) * time
        wanted = [
            of_head[:, group.heads] + each.order[:, None] for group, each in zip(self.groups, chosen, strict=True)
        ]
        index = torch.cat([each.flatten() for each in wanted])  # rows of [batch * heads * time, any]

        def gathered(tensor: Tensor) -> list[Tensor]:
            """``[batch, heads, time, any]`` to ``[batch, group's heads, kept, any]`` a group."""
            rows = tensor.reshape(-1, tensor.shape[-1])
            parts = rows.gather(0, index[:, None].expand(-1, rows.shape[1])).split([each.numel() for each in wanted])
            return [part.view(*each.shape, rows.shape[1]) for part, each in zip(parts, wanted, strict=True)]

        asked, k, v = gathered(q), gathered(new.k), gathered(new.v)
        features = [None] * len(wanted) if new.features is None else gathered(new.features)
        normaliser = wide(q.new_zeros(self.groups[-1].pattern + 1, batch, heads, time))
        read, groups = [], []
        for number, (group, each) in enumerate(zip(self.groups, chosen, strict=True)):
            keys = KeyValues.of(k[number], v[number], features[number], each.context)
            keys = keys if before is None else before.groups[number].append(keys)
            o, sums = attend_part(
                asked[number],
                each.context,
                keys,
                self.position.of_heads(group.heads),
                causal=not self.both_ways(context),
                reach=group.reach,
                dropout=self.dropped,
            )
            normaliser[group.pattern, :, group.heads] = each.placed(sums)
            read.append(o)
            held = keys.length if keys.padding is None else int((~keys.padding).sum(1).max())
            groups.append(keys.recent(min(group.carried, held)))
        if self.detach_mixture:
            normaliser = normaliser.detach()
        kept = normaliser > -torch.inf  # [patterns, batch, heads, time]
        alpha = torch.softmax(normaliser.masked_fill(~kept.any(0), 0), 0).masked_fill(~kept, 0)
        weighed = [
            o * along_time(alpha[group.pattern, :, group.heads, :, None], each.order).to(o.dtype)
            for group, each, o in zip(self.groups, chosen, read, strict=True)
        ]
        rows = torch.cat([each.reshape(-1, width) for each in weighed])
        o = rows.new_zeros(batch * heads * time, width).scatter_add(0, index[:, None].expand(-1, width), rows)
        return o.view(batch, heads, time, width), tuple(groups)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values, features and positions of what every pattern keeps of the last ``w - 1`` tokens or so."""
        per_head = (2 * self.shape.head_dim + self.position.feature_width) * dtype.itemsize
        return batch * sum(
            min(group.count(length), group.carried) * (group.width * per_head + 8) for group in self.groups
        )


@dataclass(frozen=True)
class Chosen:
    """The tokens of a call that a group keeps, wherever they lie.

    Args:
        order: their places in the call, then places of others as padding, int64 ``[batch, kept]``.
        back: where in ``order`` each token of the call is, ``[batch, time]``; anything where it is not.
        kept: whether it is, ``[batch, time]``.
        context: describes the tokens of ``order``.
    """

    order: Tensor
    back: Tensor
    kept: Tensor
    context: Context

    @staticmethod
    def of(group: Group, context: Context) -> Chosen:
        """Rows that are alike keep the same places, which are then known without reading a tensor."""
        positions, start = context.positions, context.start
        batch, time = positions.shape
        kept = group.keeps(positions)
        if start is not None:
            places = np.flatnonzero(group.keeps(np.arange(start, start + time)))
            order = on(positions.device, places).expand(batch, -1)
            padding = None
        else:
            kept = kept if context.padding is None else kept & ~context.padding
            width = int(kept.sum(1).max())
            order = (~kept).long().argsort(dim=1, stable=True)[:, :width]
            padding = ~kept.gather(1, order)
        chosen = context.map(lambda tensor: tensor.gather(1, order))
        consecutive = context.consecutive and group.dilation == 1
        chosen = replace(chosen, padding=padding, consecutive=consecutive)
        return Chosen(order, (kept.cumsum(1) - 1).clamp(min=0), kept, chosen)

    def placed(self, sums: Tensor) -> Tensor:
        """Of ``[batch, heads, kept]`` each token's own, ``[batch, heads, time]``; -inf for the rest."""
        if not sums.shape[2]:
            return sums.new_full((*sums.shape[:2], self.kept.shape[1]), -torch.inf)
        own = sums.gather(2, self.back[:, None].expand(-1, sums.shape[1], -1))
        return own.masked_fill(~self.kept[:, None], -torch.inf)


def _taken(new: KeyValues, group: Group, places: Tensor) -> KeyValues:
    """The group's keys and values at ``places``, int64 ``[any]``, the same in all rows."""
    return KeyValues(
        new.k[:, group.heads].index_select(2, places),
        new.v[:, group.heads].index_select(2, places),
        None if new.features is None else new.features[:, group.heads].index_select(2, places),
        positions=new.positions.index_select(1, places),
        consecutive=new.consecutive and group.dilation == 1,
    )


class _Merged(torch.autograd.Function):
    """``(parts, detached, causal, q, k, v, *past) -> O``: rotated q and k, ``[batch, heads, time, head_dim]``, and in
    ``past`` keys and values, ``[batch, group's heads, past, head_dim]``, of every part that has any.

    The mixture is built up in place, a part at a time: with what was there, (O, l), and the part's (o, l'),

        l'' = log(e^l + e^l'),   O <- e^(l - l'') O + e^(l' - l'') o

    In the backward pass a part's dS is ``exp(s - l) (dO V^T - rowsum(dO * O))``, with l and O those of the mixture:
    the gradient of one softmax over all patterns. With the weights of the mixture detached it is the pattern's own
    output that stands in place of O: ``alpha dO`` comes in, and ``alpha`` times the pattern's weights is
    ``exp(s - l)`` again.
    """

    @staticmethod
    def forward(
        ctx: Any, parts: list[Part], detached: bool, causal: bool, q: Tensor, k: Tensor, v: Tensor, *past: Tensor
    ) -> Tensor:
        batch, heads, time, width = q.shape
        total = wide(q.new_zeros(batch, time, heads, width)).transpose(1, 2)  # merged later as [batch, time, d_model]
        normaliser = total.new_full((batch, heads, time), -torch.inf)
        before, own = iter(past), []
        for part in parts:
            of_q, of_k, of_v = (part.of(tensor).flatten(0, 1) for tensor in (q, k, v))
            o, sums = flash(of_q, of_k, of_v, causal)  # [batch * heads, segments, kept, head_dim]
            if part.past:
                past_k, past_v = (next(before).flatten(0, 1)[:, None] for _ in range(2))
                o_past, sums_past = flash(of_q, past_k, past_v, False)
                both = torch.logaddexp(sums, sums_past)
                o = o * _weight(sums, both).to(o.dtype) + o_past * _weight(sums_past, both).to(o.dtype)
                sums = both
            if detached:
                own.append(o)
            o, sums = (tensor.unflatten(0, (batch, -1)) for tensor in (o, sums))
            of_total, of_normaliser = part.of(total), part.of(normaliser)
            if part.group.pattern == 0:
                of_total.copy_(o)
                of_normaliser.copy_(sums)
            else:
                both = torch.logaddexp(of_normaliser, sums)
                of_total.mul_(_weight(of_normaliser, both)).addcmul_(wide(o), _weight(sums, both))
                of_normaliser.copy_(both)
        mixture = total.to(q.dtype)
        ctx.parts, ctx.causal, ctx.detached, ctx.n_past = parts, causal, detached, len(past)
        ctx.save_for_backward(q, k, v, mixture, normaliser, *past, *own)
        return mixture

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mixture, normaliser, *others = ctx.saved_tensors
        past, own = others[: ctx.n_past], iter(others[ctx.n_past :])
        d_q, d_k, d_v = (torch.zeros_like(tensor, dtype=normaliser.dtype) for tensor in (q, k, v))
        before, d_past = iter(past), []
        for part in ctx.parts:
            of_d, of_q, of_k, of_v = (part.of(tensor).flatten(0, 1) for tensor in (d_o, q, k, v))
            o = next(own) if ctx.detached else part.of(mixture).flatten(0, 1)
            sums = part.of(normaliser).flatten(0, 1).contiguous()
            found = flash_backward(of_d, of_q, of_k, of_v, o, sums, ctx.causal)
            for total, gradient in zip((d_q, d_k, d_v), found, strict=True):
                part.of(total).add_(gradient.unflatten(0, (len(q), -1)))
            if part.past:
                past_k, past_v = (next(before).flatten(0, 1)[:, None] for _ in range(2))
                gradient, *rest = flash_backward(of_d, of_q, past_k, past_v, o, sums, False)
                part.of(d_q).add_(gradient.unflatten(0, (len(q), -1)))
                d_past += [each[:, 0].unflatten(0, (len(q), -1)) for each in rest]
        return None, None, None, *(total.to(q.dtype) for total in (d_q, d_k, d_v)), *d_past


def _weight(part: Tensor, whole: Tensor) -> Tensor:
    """``exp(part - whole)`` ``[..., 1]``."""
    return (part - whole).exp()[..., None]
