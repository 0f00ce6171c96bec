"""What mechanisms share that retrieve single keys from far back: who may retrieve what, and reading what was found.

Segment s of a document holds its positions ``s * length`` to ``(s + 1) * length - 1``. All queries of a segment may
retrieve the same keys, those in a range of positions before it, so they are searched for together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from lcbench.attention.base import Context
from lcbench.attention.cache import Cache
from lcbench.attention.nearest import Search
from lcbench.attention.precision import wide, without_autocast
from lcbench.attention.segments import Segments
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape

#: numbers that the backward pass makes at a time where gradients of keys are gathered
_NUMBERS = 2**20


def layers_with_memory(shape: LayerShape, chosen: list[int] | None) -> list[int]:
    """The layers with a memory, from 0: ``chosen``, or the one three quarters up (the 9th of 12).

    Raises:
        ConfigurationError: for a layer that the network does not have.
    """
    if chosen is None:
        return [math.ceil(3 * shape.n_layers / 4) - 1]
    for layer in chosen:
        if not 0 <= layer < shape.n_layers:
            closest = 0 if layer < 0 else shape.n_layers - 1
            raise ConfigurationError(
                f"attention.memory_layers={chosen} names layer {layer}, and there are {shape.n_layers} "
                f"(counted from 0); the closest is {closest}."
            )
    return chosen


def cosine(q: Tensor, k: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of length one, and queries of length ``s sqrt(head_dim)``, because scoring divides by the root: scores are
    then cosines times the scale ``s = exp(log_scale)`` of each head.

    ``q``, ``k`` ``[batch, heads, time, head_dim]``, ``log_scale`` ``[heads]``. Keys stored by older weights differ in
    direction only.
    """
    with without_autocast(q.device):
        scale = torch.exp(wide(log_scale))[:, None, None] * q.shape[-1] ** 0.5
        return (scale * unit(q)).to(q.dtype), unit(k).to(k.dtype)


def unit(x: Tensor) -> Tensor:
    """``x / sqrt(|x|^2 + 1e-6)`` of ``[..., head_dim]``, in float32 at least."""
    x = wide(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


@dataclass(frozen=True)
class Span:
    """The keys that some queries, alike in this, may see.

    Args:
        columns: all of them lie here in the buffer of keys.
        seen: which of those each batch row sees, bool ``[batch, columns]``; None: all.
    """

    columns: slice
    seen: Tensor | None

    @property
    def width(self) -> int:
        return self.columns.stop - self.columns.start


class Past:
    """The queries of a call, cut into segments, and the keys at positions before each segment.

    Args:
        context: describes the queries.
        keys: describes all keys, those of the queries last.
        length: positions in a segment.
    """

    def __init__(self, context: Context, keys: Cache, length: int) -> None:
        self.context = context
        self.keys = keys
        self.length = length
        self.segments = Segments(context, length, None)
        known = context.start is not None and keys.consecutive
        #: position of key 0, where rows are alike and each token follows the one before it
        self.first: int | None = None
        if known and keys.documents is None and keys.padding is None:
            assert context.start is not None
            self.first = context.start - (keys.length - context.positions.shape[1])

    @cached_property
    def _places(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each piece: where its segment starts, its document, and whether the row has a token; ``[batch, 1]``."""
        documents = self.context.documents
        if documents is None:
            documents = torch.zeros_like(self.context.positions)
        of_pieces = self.segments.split(documents[:, :, None])
        places = []
        for piece, document in zip(self.segments.pieces, of_pieces, strict=True):
            at = piece.positions[:, :1]
            filled = torch.ones_like(at, dtype=torch.bool) if piece.padding is None else ~piece.padding[:, :1]
            places.append((at - at % self.length, document[:, 0], filled))
        return places

    def start(self, piece: int) -> int | Tensor:
        """Where the piece's segment starts: a number where rows are alike, otherwise int64 ``[batch, 1]``."""
        if self.first is None:
            return self._places[piece][0]
        at = self._queries(piece).start + self.first
        return at - at % self.length

    def spans(self, since: int | None, until: int) -> Iterator[Span]:
        """Of each piece the keys at positions from ``start - since`` (None: 0) up to, not including,
        ``start - until``, where ``start`` is that of the piece's segment.

        With ``until`` below 0 that includes the segment itself, as far as the buffer goes.
        """
        keys_read = self.keys.length
        for number in range(len(self.segments.pieces)):
            start = self.start(number)
            first = 0 if since is None else start - since
            if self.first is None:
                yield self._looked_up(number, first, start - until)
            else:
                assert isinstance(start, int)
                stop = min(max(0, start - until - self.first), keys_read)
                low = max(0, int(first) - self.first)
                yield Span(slice(min(low, stop), stop), None)

    def _looked_up(self, number: int, first: Any, stop: Any) -> Span:
        keys = self.keys
        _, document, filled = self._places[number]
        seen = (keys.positions >= first) & (keys.positions < stop) & filled
        seen = seen & (document == (0 if keys.documents is None else keys.documents))
        if keys.padding is not None:
            seen = seen & ~keys.padding
        somewhere = seen.any(0).nonzero()[:, 0]
        if not len(somewhere):
            return Span(slice(0, 0), seen[:, :0])
        columns = slice(int(somewhere[0]), int(somewhere[-1]) + 1)
        return Span(columns, seen[:, columns])

    def _queries(self, piece: int) -> slice:
        """Columns of the piece's own tokens, where rows are alike."""
        start = self.keys.length - self.context.positions.shape[1] + sum(self.segments.widths[:piece])
        return slice(start, start + self.segments.widths[piece])


@dataclass(frozen=True)
class Found:
    """The keys retrieved for each query.

    Args:
        scores: ``q . k``, ``[batch, heads, q_time, count]``; the least finite number where ``any`` fewer were seen.
        index: places in the buffer of keys, int64, of the same shape.
        any: whether the query retrieved anything, bool ``[batch, 1, q_time, 1]``.
        distance: in positions, of a query to a key it retrieved, the mean for each head, ``[heads]``.
    """

    scores: Tensor
    index: Tensor
    any: Tensor
    distance: Tensor


@torch.no_grad()
def retrieve(q: Tensor, past: Past, spans: list[Span], search: Search) -> Found:
    """Search for ``q`` ``[batch, heads, q_time, head_dim]``, each piece in its span."""
    batch, heads = q.shape[:2]
    shape = (batch, heads, -1, search.count)
    scores, index = [], []
    for queries, span in zip(past.segments.split(q), spans, strict=True):
        if span.width:
            best, places = search(queries, span.columns, span.seen)
        else:
            best = queries.new_full((), -torch.inf).expand(batch, heads, queries.shape[2], search.count)
            places = torch.zeros((), dtype=torch.int64, device=q.device).expand_as(best)
        scores.append(best)
        index.append(places)
    places = past.segments.join(index).view(shape)
    joined = past.segments.join(scores).view(shape)
    valid = joined > -torch.inf
    if past.context.padding is not None:
        valid = valid & ~past.context.padding[:, None, :, None]
    positions = past.keys.positions[:, None, :].expand(-1, heads, -1)
    at = positions.gather(2, places.flatten(2)).view_as(places)
    apart = (past.context.positions[:, None, :, None] - at) * valid
    distance = apart.sum((0, 2, 3)) / valid.sum((0, 2, 3)).clamp(min=1)
    return Found(
        joined.masked_fill(~valid, torch.finfo(joined.dtype).min), places, valid.any(-1, keepdim=True), distance
    )


def read(q: Tensor, k: Tensor, v: Tensor, found: Found, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """Softmax attention over what was found.

    Args:
        q: ``[batch, heads, q_time, head_dim]``; what was searched with.
        k, v: the buffer of keys and values, ``[batch, heads, k_time, head_dim]``; they get a gradient if they want it.
        dropout: probability of dropping an attention weight.

    Returns:
        ``[batch, heads, q_time, head_dim]``, and the logarithm of the softmax's denominator,
        ``[batch, heads, q_time, 1]``; anything finite where nothing was found.
    """
    batch, heads, k_time, _ = k.shape
    first = torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1) * k_time
    rows = (found.index + first).flatten(0, 2)  # [batch * heads * q_time, count]
    scores = _Scores.apply(q.flatten(0, 2), k.flatten(0, 2), rows, found.scores.flatten(0, 2))
    total = scores.logsumexp(-1, keepdim=True)
    weights = torch.nn.functional.dropout(torch.exp(scores - total), dropout)
    o = embedding_bag(rows, v.flatten(0, 2), mode="sum", per_sample_weights=weights)
    return o.view_as(q), total.view(*q.shape[:3], 1)


class _Scores(torch.autograd.Function):
    """``q, k, rows, scores -> scores``: the inner products of ``q`` ``[any, head_dim]`` with the ``rows``
    ``[any, count]`` of ``k`` ``[other, head_dim]``, which a search has computed already, with their gradients:

        dq_i = sum_n dS_in k_rows(i, n);  dk_j = sum of dS_in q_i over all (i, n) whose row is j

    Nothing of size ``any x count x head_dim`` is made.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, rows: Tensor, scores: Tensor) -> Tensor:
        ctx.save_for_backward(q if ctx.needs_input_grad[1] else None, k, rows)
        return scores.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor | None, ...]:
        q, k, rows = ctx.saved_tensors
        d_q = d_k = None
        if ctx.needs_input_grad[0]:
            d_q = embedding_bag(rows, k, mode="sum", per_sample_weights=d_scores)
        if ctx.needs_input_grad[1]:
            d_k = torch.zeros_like(k)
            step = max(1, _NUMBERS // (rows.shape[1] * k.shape[1]))
            for start in range(0, len(rows), step):
                some = slice(start, start + step)
                parts = d_scores[some, :, None] * q[some, None]  # [step, count, head_dim]
                d_k.index_add_(0, rows[some].flatten(), parts.flatten(0, 1))
        return d_q, d_k, None, None
