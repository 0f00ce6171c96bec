"""Focused Transformer: in some layers one softmax over local and all earlier keys, trained against distraction.

Tworkowski, Staniszewski, Pacek, Wu, Michalewski, Milos, "Focused Transformer: Contrastive Training for Context
Scaling", 2023, arXiv 2307.03170. A document is cut into windows of C positions, which begin at a. Every layer reads
its window up to the query, and the X positions before it. In a memory layer these keys are joined, in one softmax and
with no gate, by keys of the memory M, all those of the document before ``a - X`` (or the n with the largest score):

    o = sum_j softmax_j(q . k_j / tau) v_j      over M and the local keys

The memory has no order: in a memory layer there are no positions at all, or (LongLLaMA) positions are counted within
the window, and every key of the memory stands at the window's first.

Training makes other documents compete for attention. A query of a window that begins at a then reads, of the memory,

    the n_pos C positions before a - X in its own row (positives), and
    the C positions before a - X in each of the next n_neg rows, modulo the batch (negatives: other documents),

all in the same softmax and with gradients into all keys and values, under the usual loss. What share of the attention
on these contexts falls on the own document is the paper's ``r_d``; a model that is distracted has ``1 / d`` of d
contexts. A dataset asks for this (``Facts.crossbatch``) and decides how many contexts each row reads; without it, as
in evaluation, a query reads its own document alone.

Nothing is detached: within a call, keys of earlier windows get gradients. A state's are the engine's to cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lcbench.attention.base import AttentionOutput, Context, CrossBatch, State
from lcbench.attention.cache import KeyValues
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.nearest import Exact
from lcbench.attention.precision import wide, without_autocast
from lcbench.attention.reach import Segment
from lcbench.attention.retrieval import Past, cosine, layers_with_memory, read, retrieve
from lcbench.attention.scoring import attend
from lcbench.errors import ConfigurationError
from lcbench.position.base import Alignment, LayerShape, PositionEncoding
from lcbench.position.none import NoPosition
from lcbench.units import Length

#: numbers of keys that cross-batch training gathers at a time
_NUMBERS = 2**24


class Focused(MultiHead):
    """Local attention; in memory layers joined, in one softmax, by everything before.

    Args:
        shape: the network's shape.
        position: the layer's encoding, of local attention.
        segment: C, positions in a window.
        cache: X, positions before the window that local attention reads.
        memory_layers: which layers have a memory, from 0; null for one, three quarters up (the paper's 9th of 12).
        retrieved: n, keys of the memory that a query reads, 128 in the paper; null for all.
        memory_position: no positions in memory layers (none, the paper's small models), or every key of the memory at
            the first position of the window (first, LongLLaMA).
        temperature: 1 / tau of memory layers. Learned: a scale for each head, of queries and keys of length one (the
            paper's small models). Fixed: ``1 / sqrt(head_dim)``, for grafting on a model trained without (LongLLaMA).
        initial_scale: the learned scale at the start, positive.

    Raises:
        ConfigurationError: for sizes that hold nothing, a layer that is not there, or an encoding that cannot place
            the memory at one position.
    """

    remembers = True
    footprint = "H (dk + dv) T"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        segment: Length = 64,
        cache: Length = 0,
        memory_layers: list[int] | None = None,
        retrieved: int | None = None,
        memory_position: Literal["none", "first"] = "none",
        temperature: Literal["learned", "fixed"] = "learned",
        initial_scale: float = 10.0,
    ) -> None:
        for key, value, least in (("segment", segment, 1), ("cache", cache, 0)):
            if value < least:
                raise ConfigurationError(
                    f"attention.{key}={value} is no number of positions; the least is attention.{key}={least}."
                )
        if retrieved is not None and retrieved < 1:
            raise ConfigurationError(
                f"attention.retrieved={retrieved} reads nothing; the least is 1, and null reads everything."
            )
        if not initial_scale > 0:
            raise ConfigurationError(f"attention.initial_scale={initial_scale} must be positive, such as 10.")
        remembers = shape.layer in layers_with_memory(shape, memory_layers)
        placed = remembers and memory_position == "first"
        if placed and position.reads_content(torch.tensor([[segment + cache - 1]], device="cpu")):
            raise ConfigurationError(
                f"attention.memory_position=first needs an encoding that scores by position alone, and "
                f"{type(position).__name__} reads queries or keys; the closest is attention.memory_position=none."
            )
        # what is added to the network's input is not this layer's to leave out
        embeds = type(position).embed is not PositionEncoding.embed
        super().__init__(shape, position if placed or embeds or not remembers else NoPosition(shape))
        self.segment: int = segment
        self.local = Segment(segment, cache)
        self.remembers = remembers
        self.retrieved = retrieved
        #: whether local keys and those of the memory are scored in the same way
        self.orderless = not placed or isinstance(position, NoPosition) or embeds
        self.cosines = remembers and temperature == "learned"
        if self.cosines:
            self.log_scale = nn.Parameter(torch.full((shape.n_heads,), math.log(initial_scale)))

    def compared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """With a learned temperature scores are cosines times the scale."""
        return cosine(q, k, self.log_scale) if self.cosines else (q, k)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is the ``KeyValues`` of what was read before."""
        q, keys = self.project(x, context)
        if isinstance(state, KeyValues):
            keys = state.append(keys)
        measures: dict[str, Tensor] = {}
        if not self.remembers:
            o = attend(q, context, keys, self.position, reach=self.local, dropout=self.dropped)
            return AttentionOutput(self.merge(o), keys.recent(self.local.length - 1 + self.local.memory))
        if not x.shape[1] or (self.orderless and self.retrieved is None and context.crossbatch is None):
            o = attend(q, context, keys, self.position, dropout=self.dropped)
        else:
            windows = _Windows(q, context, keys, self.position, self.local)
            if context.crossbatch is not None:
                o, measures = self._across_rows(windows, context.crossbatch)
            elif self.retrieved is not None:
                with without_autocast(x.device):
                    o, measures = self._best(windows, self.retrieved)
            else:
                o = self._everything(windows)
        return AttentionOutput(self.merge(o), keys, measures=measures)

    def _everything(self, windows: _Windows) -> Tensor:
        """All of the memory: ``[batch, heads, time, head_dim]``."""

        def read_window(number: int) -> Tensor:
            span = windows.memory[number]
            seen = None if span.seen is None else span.seen[:, None, None]
            memory = _Keys(windows.k[:, :, span.columns], windows.v[:, :, span.columns], seen)
            return windows[number].read(memory, self.dropped)

        read = _recomputed(read_window, windows, [span.width for span in windows.memory])
        # the last window reads most: what it frees has room for all others, and the heap does not grow in steps
        return windows.join([read(number) for number in reversed(range(len(windows.all)))][::-1])

    def _best(self, windows: _Windows, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The best ``count`` keys of the memory. The two parts of the softmax are merged by their denominators."""
        q = wide(windows.join([window.q for window in windows.all])) * self.shape.head_dim**-0.5
        k, v = wide(windows.k).contiguous(), wide(windows.v).contiguous()
        search = Exact(k.detach(), windows.keys.padding, count)
        found = retrieve(q.detach(), windows.past, windows.memory, search)
        from_memory, memory_total = read(q, k, v, found, self.dropped)
        local, totals = [], []
        for window in windows.all:
            scores = torch.matmul(wide(window.q) * self.shape.head_dim**-0.5, wide(window.local.k).transpose(-1, -2))
            scores = scores + window.bias  # [batch, heads, width, columns]
            total = scores.logsumexp(-1, keepdim=True)
            weights = F.dropout(torch.exp(scores - total), self.dropped)
            local.append(torch.matmul(weights, wide(window.local.v)))
            totals.append(total)
        if windows[0].memory_bias is not None:
            biases = [window.memory_bias.expand(*window.q.shape[:3], 1) for window in windows.all]  # type: ignore[union-attr]
            memory_total = memory_total + windows.join(biases)
        # of the softmax's denominator, what belongs to the memory
        share = torch.sigmoid(memory_total - windows.join(totals)) * found.any  # [batch, heads, time, 1]
        o = share * from_memory + (1 - share) * windows.join(local)
        measures = {}
        if any(span.width for span in windows.memory):
            measures["retrieval_distance"] = found.distance
            rows = found.any.sum((0, 2, 3)).clamp(min=1)
            measures["memory_share"] = share.detach().sum((0, 2, 3)) / rows
        return o.to(windows.v.dtype), measures

    def _across_rows(self, windows: _Windows, crossbatch: Sequence[CrossBatch]) -> tuple[Tensor, dict[str, Tensor]]:
        """Previous contexts of the own document, and of other rows' documents."""
        batch = windows.v.shape[0]
        for numbers in crossbatch:
            numbers.require(batch)
        if windows.past.first is None or len(crossbatch) != batch:
            raise ConfigurationError(
                "Cross-batch training needs rows of one document each, all from the same position and without "
                f"padding, and the numbers of contexts for each of {batch} rows."
            )
        most = max(1, *(numbers.n_pos + numbers.n_neg for numbers in crossbatch))
        together = max(1, _NUMBERS // (most * self.segment * self.shape.d_model))
        groups = [slice(first, first + together) for first in range(0, batch, together)]

        def read_rows(number: int, some: slice) -> Tensor:
            contexts, _ = windows.contexts(windows.memory[number].columns, some, crossbatch)
            return windows[number].rows(some).read(contexts, self.dropped)

        widths = [min(self.segment, span.width) * most for span in windows.memory]
        read = _recomputed(read_rows, windows, widths)
        o = windows.join([torch.cat([read(number, some) for some in groups]) for number in range(len(windows.all))])
        of_own, counted = wide(o.new_zeros(self.shape.n_heads)), 0
        with torch.no_grad():
            for window, span in zip(windows.all, windows.memory, strict=True):
                for some in groups if span.width else ():
                    contexts, own = windows.contexts(span.columns, some, crossbatch)
                    share = window.rows(some).share(contexts, own)  # [rows, heads]
                    of_own, counted = of_own + share.sum(0), counted + len(share)
        return o, {"positive_share": of_own / counted} if counted else {}

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values and features of every token in a memory layer, and of those that local attention may see
        again in the others; and their positions."""
        kept = length if self.remembers else min(length, self.local.length - 1 + self.local.memory)
        return batch * kept * self.key_bytes(dtype.itemsize)


@dataclass(frozen=True)
class _Keys:
    """Keys, rotated, and values, ``[batch, heads, columns, head_dim]``, and who sees them, bool
    ``[batch, 1, 1, columns]``; None: every query."""

    k: Tensor
    v: Tensor
    visible: Tensor | None = None


@dataclass(frozen=True)
class _Window:
    """Queries of one window, and what is local to them.

    Args:
        q: rotated, ``[batch, heads, width, head_dim]``.
        local: the window's keys, and those of the cache.
        bias: of local keys, the least finite number where hidden: ``[1 or batch, 1 or heads, width, columns]``.
        memory_bias: of any key of the memory, ``[1 or batch, 1 or heads, width, 1]``, or None.
    """

    q: Tensor
    local: _Keys
    bias: Tensor
    memory_bias: Tensor | None

    def rows(self, some: slice) -> _Window:
        """Batch rows ``some``."""

        def of(bias: Tensor) -> Tensor:
            return bias[some] if bias.shape[0] > 1 else bias

        local = _Keys(self.local.k[some], self.local.v[some])
        return _Window(self.q[some], local, of(self.bias), None if self.memory_bias is None else of(self.memory_bias))

    def read(self, memory: _Keys, dropout: float) -> Tensor:
        """One softmax over ``memory`` and local keys: ``[batch, heads, width, head_dim]``."""
        bias = self.bias.new_zeros(1, 1, 1, 1) if self.memory_bias is None else self.memory_bias
        if memory.visible is not None:
            bias = torch.where(memory.visible, bias, torch.finfo(bias.dtype).min)
        batch, heads = torch.broadcast_shapes(bias.shape[:2], self.bias.shape[:2])
        width, columns = self.bias.shape[2:]
        mask = torch.cat(
            [bias.expand(batch, heads, width, memory.k.shape[2]), self.bias.expand(batch, heads, width, columns)], -1
        )
        k, v = torch.cat([memory.k, self.local.k], 2), torch.cat([memory.v, self.local.v], 2)
        return scaled_dot_product_attention(self.q, k, v, attn_mask=mask, dropout_p=dropout)

    def share(self, contexts: _Keys, own: int) -> Tensor:
        """Of the attention on ``contexts``, how much falls on the first ``own`` columns: the mean over at most 32
        queries, ``[rows, heads]``, of the rows that see contexts of both kinds."""
        assert contexts.visible is not None
        visible = contexts.visible
        both = visible[..., :own].any(-1) & visible[..., own:].any(-1)  # [rows, 1, 1]
        q = wide(self.q[:, :, :: max(1, self.q.shape[2] // 32)]) * self.q.shape[-1] ** -0.5
        scores = torch.matmul(q, wide(contexts.k).transpose(-1, -2))
        weights = torch.softmax(scores.masked_fill(~visible, torch.finfo(scores.dtype).min), -1)
        return weights[..., :own].sum(-1).mean(-1)[both[:, 0, 0]]


class _Windows:
    """The windows of a call, with positions counted inside each: keys of the memory stand at the first.

    Args:
        q: queries before rotation, ``[batch, heads, time, head_dim]``.
        context: describes them.
        keys: all keys, those of the queries last.
        position: the layer's encoding.
        local: what is local to a query.
    """

    def __init__(
        self, q: Tensor, context: Context, keys: KeyValues, position: PositionEncoding, local: Segment
    ) -> None:
        self.keys = keys
        self.length = local.length
        self.past = Past(context, keys, local.length)
        self.memory = list(self.past.spans(None, local.memory))
        first = torch.zeros_like(keys.positions)
        self.k = position.rotate(q[:, :, :1], keys.k, first[:, :1], first)[1]
        self.v = keys.v
        self.all: list[_Window] = []
        near = self.past.spans(local.memory, -local.length)
        pieces = zip(self.past.segments.pieces, self.past.segments.split(q), near, strict=True)
        for number, (piece, queries, span) in enumerate(pieces):
            origin = self.past.start(number) - local.memory
            q_positions, k_positions = piece.positions - origin, keys.positions[:, span.columns] - origin
            if self.past.first is not None:
                q_positions, k_positions = q_positions[:1], k_positions[:1]  # rows are alike
            columns = (slice(None), slice(None), span.columns)
            rotated_q, rotated_k = position.rotate(queries, keys.k[columns], q_positions, k_positions)
            visible = (k_positions[:, None, :] <= q_positions[:, :, None])[:, None]
            if span.seen is not None:
                visible = visible & span.seen[:, None, None]
            bias = position.position_bias(Alignment(q_positions, k_positions, None))
            bias = q.new_zeros(()) if bias is None else bias.to(q.dtype)
            at_first = position.position_bias(Alignment(q_positions, torch.zeros_like(q_positions[:, :1]), None))
            self.all.append(
                _Window(
                    rotated_q,
                    _Keys(rotated_k, keys.v[columns]),
                    torch.where(visible, bias, torch.finfo(q.dtype).min),
                    None if at_first is None else at_first.to(q.dtype),
                )
            )

    def __getitem__(self, number: int) -> _Window:
        return self.all[number]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor ``[batch, heads, width, any]`` a window, to all of time."""
        return self.past.segments.join(parts)

    def contexts(self, before: slice, rows: slice, crossbatch: Sequence[CrossBatch]) -> tuple[_Keys, int]:
        """The previous contexts of ``rows``, own ones first, and how many columns those have.

        ``before``: columns of all keys before the window.
        """
        batch, device = self.v.shape[0], self.v.device
        asked = crossbatch[rows]
        own = slice(max(before.start, before.stop - max(n.n_pos for n in asked) * self.length), before.stop)
        last = slice(max(before.start, before.stop - self.length), before.stop)
        others = max(n.n_neg for n in asked)
        numbers = torch.arange(batch, device=device)[rows]
        chosen = (numbers[:, None] + 1 + torch.arange(others, device=device)) % batch  # [rows, others]

        def gather(t: Tensor) -> Tensor:
            of_others = t[:, :, last].index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
            return torch.cat([t[rows, :, own], of_others.transpose(1, 2).flatten(2, 3)], 2)

        n_pos = torch.tensor([n.n_pos for n in asked], device=device)[:, None]
        n_neg = torch.tensor([n.n_neg for n in asked], device=device)[:, None]
        places = torch.arange(own.start, own.stop, device=device)
        of_others = torch.arange(others, device=device).repeat_interleave(last.stop - last.start)
        visible = torch.cat([places >= before.stop - n_pos * self.length, of_others < n_neg], 1)
        return _Keys(gather(self.k), gather(self.v), visible[:, None, None]), own.stop - own.start


def _recomputed(read: Callable[..., Tensor], windows: _Windows, widths: Sequence[int]) -> Callable[..., Tensor]:
    """``read``, which computes again in the backward pass if what it keeps would outgrow the keys; ``widths``: how
    many keys of the memory it takes for each window."""
    of_key = 2 * windows.v.shape[0] * windows.v.shape[1] * windows.v.shape[3]
    kept = sum(
        (window.q.shape[2] + of_key) * (width + window.local.k.shape[2])
        for window, width in zip(windows.all, widths, strict=True)
    )
    if torch.is_grad_enabled() and kept > 3 * windows.v.numel():
        return partial(checkpoint, read, use_reentrant=False)
    return read
