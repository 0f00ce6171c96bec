"""Compressive Transformer: old memories are compressed instead of dropped.

Rae, Potapenko, Jayakumar, Hillier, Lillicrap, "Compressive Transformers for Long-Range Sequence Modelling", 2019,
arXiv 1911.05507. A document is cut into segments of ns positions. With h the layer's input, m its input at the nm
positions before the segment, and cm what became of those before:

    q = W_q h,   k = W_k [cm; m; h],   v = W_v [cm; m; h]         oldest first
    o = softmax(c q k^T + what the encoding adds) v,   y = W_o o  a query sees cm, m, and its segment up to itself

When a segment is full, the ns oldest positions leave m, and f_c makes ns / rate slots of them, one of every ``rate``
positions; the oldest slots leave cm so that ncm are left. Unlike the authors' stores, which start as zeros that are
attended to, places that hold nothing are hidden: before the first eviction this is Transformer-XL with memory nm. What
is stored follows from positions alone, however a document was cut into calls.

Distances are those of places in [cm; m; h]: true ones between tokens, one more for each further slot. The paper leaves
open whether a slot counts for one place or for ``rate``; one is the natural reading.

f_c is mean or max pooling, a convolution of kernel and stride ``rate``, or "most used": of every ns positions the
ns / rate that got most attention, on average over heads and over the queries of the segment that ends. A convolution
learns from a loss of its own, ``compressive_reconstruction``, with everything but f_c constant:

    attention:      || att(h, old) - att(h, f_c(old)) ||,  att(h, m) = softmax(c (W_q h) (W_k m)^T) W_v m
    auto_encoding:  || old - g(f_c(old)) ||,  g a linear map from a slot to ``rate`` rows

in the plain Euclidean norm, without positions or causal mask, as the mean over all evictions of a call.

Nothing is detached but in that loss: the engine detaches states between calls. Fed one segment a call, f_c so learns
from its loss alone, and the network from its task alone, as in the paper; fed several, f_c also gets the task's
gradient. f_c and g are parameter groups of their own and are clipped by a norm of their own: one norm over everything
would let a large reconstruction loss slow the network down.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.cache import KeyValues
from lcbench.attention.explicit import distance_vectors
from lcbench.attention.layout import Layout
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.precision import wide
from lcbench.attention.scoring import attend, received
from lcbench.attention.segments import Reached
from lcbench.attention.transformer_xl import refuse_absolute
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.units import Length

#: keys and values, ``[batch, heads, count, head_dim]``, and what the encoding knows of each, or None
Made = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class CompressiveState(State):
    """Memories of the segment in which a row's last token lies. Zero is a fresh start.

    Args:
        hidden: the layer's inputs at the memory's and the segment's places, ``[batch, nm + ns, d_model]``.
        filled: which of them hold a token, bool ``[batch, nm + ns]``.
        compressed: slots, the oldest first, ``[batch, ncm, d_model]``.
        kept: which of them hold something, bool ``[batch, ncm]``.
        reached: the last token read.
    """

    hidden: Tensor
    filled: Tensor
    compressed: Tensor
    kept: Tensor
    reached: Reached


class Compressive(MultiHead):
    """Segments, each with a memory and a compressed memory.

    Args:
        shape: the network's shape.
        position: the layer's encoding, one of distances.
        segment: ns, positions in a segment; the rate divides it.
        memory: nm, positions before the segment that are kept as they are, a multiple of ns; null for ns.
        compressed_memory: ncm, slots.
        rate: positions that become a slot.
        compression: f_c.
        reconstruction: how a convolution is trained.

    Raises:
        ConfigurationError: for sizes that do not divide, and for an encoding that adds to the input.
    """

    remembers = True
    footprint = "d (nm + ncm + ns)"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        segment: Length = 64,
        memory: Length | None = None,
        compressed_memory: Length = 64,
        rate: int = 4,
        compression: Literal["mean", "max", "conv", "most_used"] = "conv",
        reconstruction: Literal["attention", "auto_encoding", "none"] = "attention",
    ) -> None:
        super().__init__(shape, position)
        memory = segment if memory is None else memory
        if segment < 1:
            raise ConfigurationError(f"attention.segment={segment} holds nothing; the least is attention.segment=1.")
        if rate < 1 or segment % rate:
            closest = min((r for r in range(1, segment + 1) if segment % r == 0), key=lambda r: abs(r - rate))
            raise ConfigurationError(
                f"attention.rate={rate} does not divide attention.segment={segment}; "
                f"the closest that does is attention.rate={closest}."
            )
        if memory < segment or memory % segment:
            raise ConfigurationError(
                f"attention.memory={memory} is no multiple of attention.segment={segment}; "
                f"the closest is attention.memory={max(1, round(memory / segment)) * segment}."
            )
        if compressed_memory < 0:
            raise ConfigurationError(
                f"attention.compressed_memory={compressed_memory} is no size; the least is "
                "attention.compressed_memory=0."
            )
        refuse_absolute(position, f"attention.memory={memory}", "attention=sliding_window")
        self.segment: int = segment
        self.memory, self.compressed_memory = memory, compressed_memory
        self.windows = memory // segment  # segments in the memory
        self.slots = segment // rate  # of one segment
        #: segments before a segment that it sees something of, and one
        self.farthest = self.windows + -(-compressed_memory // self.slots) + 1
        self.compressor = _COMPRESSORS[compression](shape.d_model, rate)
        self.reconstruction: Reconstruction | None = None
        if isinstance(self.compressor, Convolution) and reconstruction != "none":
            attends = reconstruction == "attention"
            self.reconstruction = AttentionError() if attends else CodingError(shape.d_model, rate)
            self.own_losses = ("compressive_reconstruction",)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is a ``CompressiveState``."""
        before = state if isinstance(state, CompressiveState) else None
        layout = Layout(context, self.segment, self.windows, self.farthest, before.reached if before else None)
        read = self._lay(x, context, layout, before)
        fresh, before = before is None, before or self._empty(x, layout.reached)
        # windows that were the memory of nothing before are empty
        empty = min(self.windows, layout.segments - 1) if fresh else 0
        slots, kept = self._compress(read, before, empty)

        # from a segment on, rows that are alike have the whole past of a segment in this call, and nothing to hide
        sure = min(layout.occupied, self.farthest) if layout.alike else layout.occupied
        groups = [(0, sure, True, 0), (sure, layout.occupied, False, 0)]
        if fresh and layout.alike and layout.first == 0:
            # and where a document begins, all that a segment does not have yet lies on one side
            sure = min(layout.occupied, self.farthest - 1)
            groups = [(n, n + 1, False, self._missing(n)) for n in range(sure)] + [(sure, layout.occupied, False, 0)]
        seen = (layout.occupied - 1) * self.slots + self.compressed_memory
        made = self._keys_of_slots(slots[:, :seen], self.compressed_memory + empty * self.slots if fresh else 0)
        vectors = distance_vectors(self.position, self.segment, self.compressed_memory + self.memory + self.segment)
        outputs: list[Tensor] = []
        for first, stop, hides, missing in groups:
            if first < stop:
                q, where, keys = self._segments(read, made, kept, first, stop, hides, missing)
                o = attend(q, where, keys, self.position, dropout=self.dropped, vectors=vectors)
                outputs += o.split(len(x))
        o = torch.cat(outputs, 2)  # [batch, heads, occupied * ns, head_dim]

        losses = {}
        if self.reconstruction is not None and torch.is_grad_enabled():
            losses["compressive_reconstruction"] = self._loss(self.reconstruction, read, empty)
        return AttentionOutput(self.merge(layout.lift(o)), self._carried(read, slots, kept), losses)

    def _empty(self, x: Tensor, like: Reached) -> CompressiveState:
        places, (batch, _, d_model) = self.memory + self.segment, x.shape
        none = x.new_zeros(batch, places + self.compressed_memory, d_model).split([places, self.compressed_memory], 1)
        no = like.read.new_zeros(batch, places + self.compressed_memory).split([places, self.compressed_memory], 1)
        return CompressiveState(none[0], no[0], none[1], no[1], like)

    def _missing(self, segment: int) -> int:
        """Places of [cm; m] that hold nothing yet in segment ``segment`` of a document."""
        slots = self.compressed_memory - max(0, segment - self.windows) * self.slots
        return max(0, self.memory - segment * self.segment) + max(0, slots)

    def _lay(self, x: Tensor, context: Context, layout: Layout, before: CompressiveState | None) -> Read:
        """The tokens of ``x`` ``[batch, time, d_model]`` behind the memory, and what is made of them."""
        valid = torch.ones_like(context.positions, dtype=torch.bool) if context.padding is None else ~context.padding
        none = x.new_zeros(len(x), self.memory + self.segment, x.shape[2])
        no = valid.new_zeros(*none.shape[:2], 1)

        def laid(project: nn.Module) -> Tensor:
            made = project(x)
            # places that hold nothing are hidden, whatever stands there
            return self.split(layout.lay(made, none.to(made.dtype) if before is None else project(before.hidden)))

        hidden = layout.lay(x, none if before is None else before.hidden)
        filled = layout.lay(valid[..., None], no if before is None else before.filled[..., None])[..., 0]
        k, v = laid(self.k), laid(self.v)
        return Read(layout, hidden, filled, laid(self.q), k, v, self.position.key_features(hidden, k, v))

    def _compress(self, read: Read, before: CompressiveState, empty: int) -> tuple[Tensor, Tensor]:
        """All slots, ``[batch, ncm + (segments - 1) * ns / rate, d_model]``, and which of them hold something: those
        of the state, and those of every window that leaves the memory, of which the first ``empty`` hold nothing."""
        count = read.layout.segments - 1
        if not isinstance(self.compressor, MostUsed):
            old, filled = read.windows(empty, count)
            new, kept = self.compressor(old, filled)
            none = (0, 0, 0, empty * self.slots)
            return (
                torch.cat([pad(before.compressed, none), new.flatten(1, 2).to(old.dtype)], 1),
                torch.cat([pad(before.kept, none[2:]), kept.flatten(1)], 1),
            )
        old, filled = read.windows(0, count)
        # what attention a window gets depends on the slots that were made before
        slots, kept = before.compressed, before.kept
        for n in range(count):
            q, where, keys = self._segments(read, self._keys_of_slots(slots), kept, n, n + 1, True)
            asked = read.filled_segments(n, n + 1)[:, 0]  # [batch, ns]
            where = Context(where.positions, padding=~asked)
            weight = received(q, where, keys, self.position)  # [batch, heads, places]
            used = weight[..., self.compressed_memory :][..., : self.segment].sum(1)
            new, holds = self.compressor.most(old[:, n], filled[:, n], used)
            slots, kept = torch.cat([slots, new], 1), torch.cat([kept, holds], 1)
        return slots, kept

    def _keys_of_slots(self, slots: Tensor, empty: int = 0) -> Made:
        """What is made of slots ``[batch, count, d_model]``; zero of the first ``empty``."""
        empty = min(empty, slots.shape[1])
        slots = slots[:, empty:]
        k, v = self.split(self.k(slots)), self.split(self.v(slots))
        features = self.position.key_features(slots, k, v)
        k, v = (pad(made, (0, 0, empty, 0)) for made in (k, v))
        return k, v, None if features is None else pad(features, (0, 0, empty, 0))

    def _segments(
        self, read: Read, slots: Made, kept: Tensor, first: int, stop: int, hides: bool, missing: int = 0
    ) -> tuple[Tensor, Context, KeyValues]:
        """Segments ``first`` to ``stop - 1``, the rows of one after those of another: queries ``[count * batch, heads,
        ns, head_dim]``, their places in [cm; m; h], and the keys at all these places but the first ``missing``.

        ``slots`` as ``_keys_of_slots`` makes them; ``hides``: whether some places hold nothing.
        """
        k, v, features = slots
        groups = -(-self.compressed_memory // self.slots)
        outside = groups * self.slots - self.compressed_memory

        def joined(of_slots: Tensor, of_tokens: Tensor) -> Tensor:
            """``[batch, heads, line, any]`` twice to ``[count * batch, heads, places, any]``."""
            # one split, whose backward pass is one concatenation; that of every slice fills the whole length
            old = pad(of_slots, (0, 0, outside, 0)).split(self.slots, 2) if groups else ()
            new = of_tokens.split(self.segment, 2)
            return torch.cat(
                [
                    torch.cat([*old[n : n + groups], *new[n : n + self.windows + 1]], 2)[:, :, outside + missing :]
                    for n in range(first, stop)
                ]
            )

        keys, values = joined(k, read.k), joined(v, read.v)
        known = None if features is None or read.features is None else joined(features, read.features)
        rows, _, places, _ = keys.shape
        at = torch.arange(places, device=keys.device).expand(rows, -1)
        padding = None
        if hides:
            seen = joined(kept[:, None, :, None], read.filled[:, None, :, None])[:, 0, :, 0]
            if read.layout.documents is not None:
                of_slots, of_tokens = self._documents(read.layout.documents)
                document = joined(of_slots[:, None, :, None], of_tokens[:, None, :, None])[:, 0, :, 0]
                seen = seen & (document == document[:, -1:])
            padding = ~seen
        q = torch.cat(read.q.split(self.segment, 2)[self.windows + first : self.windows + stop])
        where = Context(at[:, places - self.segment :])
        return q, where, KeyValues(keys, values, known, positions=at, padding=padding)

    def _carried(self, read: Read, slots: Tensor, kept: Tensor) -> CompressiveState:
        layout, places = read.layout, self.memory + self.segment
        hidden = layout.carry(read.hidden, places, self.segment)
        filled = layout.carry(read.filled[..., None], places, self.segment)[..., 0]
        compressed = layout.carry(slots, self.compressed_memory, self.slots)
        kept = layout.carry(kept[..., None], self.compressed_memory, self.slots)[..., 0]
        if layout.documents is not None and layout.last is not None:
            of_slots, of_tokens = self._documents(layout.documents)
            document = layout.documents.gather(1, layout.last[:, None] + self.windows)
            filled = filled & (layout.carry(of_tokens[..., None], places, self.segment)[..., 0] == document)
            kept = kept & (layout.carry(of_slots[..., None], self.compressed_memory, self.slots)[..., 0] == document)
            hidden, compressed = hidden.masked_fill(~filled[..., None], 0), compressed.masked_fill(~kept[..., None], 0)
        return CompressiveState(hidden, filled, compressed, kept, layout.reached)

    def _documents(self, of_segments: Tensor) -> tuple[Tensor, Tensor]:
        """Documents of all slots and of all places, each ``[batch, line]``, from ``Layout.documents``."""
        before = of_segments[:, :1].expand(-1, self.compressed_memory)
        new = of_segments[:, : -self.windows - 1].repeat_interleave(self.slots, 1)
        return torch.cat([before, new], 1), of_segments.repeat_interleave(self.segment, 1)

    def _loss(self, reconstruction: Reconstruction, read: Read, empty: int) -> Tensor:
        """The mean error over all windows that leave the memory, when the segment that reads them last is over; the
        first ``empty`` hold nothing."""
        layout, stop = read.layout, read.layout.segments - 1
        count = stop - empty
        documents = layout.documents
        if documents is None:
            documents = read.hidden.new_zeros(len(read.hidden), self.windows + layout.segments, dtype=torch.int64)
        n = torch.arange(empty, stop, device=documents.device)
        # [batch, count]: the window is of the segment's document, and the segment is full or another one follows
        mine, ends = documents[:, n + self.windows], read.filled_segments(empty, stop)[..., -1]
        leaves = (documents[:, n] == mine) & (ends | (documents[:, n + self.windows + 1] == mine))
        if layout.last is not None:
            leaves = leaves & (n < layout.last[:, None])
        old, filled = (part.flatten(0, 1) for part in read.windows(empty, stop))
        asked = read.filled_segments(empty, stop).flatten(0, 1)

        def apart(heads: Tensor, first: int) -> Tensor:
            """``[batch, heads, places, head_dim]`` to ``[batch * count, heads, ns, head_dim]``, constant."""
            heads = heads.detach()[:, :, first * self.segment : (first + count) * self.segment]
            return heads.unflatten(2, (count, self.segment)).transpose(1, 2).flatten(0, 1)

        old = old.detach()
        slots, kept = (part[:, 0] for part in self.compressor(old[:, None], filled[:, None]))
        slots = slots.to(old.dtype)
        k, v = (
            self.split(linear(slots, m.weight.detach(), None if m.bias is None else m.bias.detach()))
            for m in (self.k, self.v)
        )
        of_old = apart(read.k, empty), apart(read.v, empty)
        q = apart(read.q, self.windows + empty)
        error = reconstruction(Evicted(old, filled, slots, kept, q, asked, of_old, (k, v)))
        counts = leaves.flatten() & filled.any(1) & asked.any(1)
        return torch.where(counts, error, 0).sum() / counts.sum().clamp(min=1)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Places of memory, segment and slots, each with what it holds and whether it holds anything, whatever the
        length; and the last token's facts."""
        places = self.memory + self.segment + self.compressed_memory
        return batch * (places * (self.shape.d_model * dtype.itemsize + 1) + 9)


@dataclass(frozen=True)
class Read:
    """All places of a call: those of the memory, then those of its segments.

    Args:
        layout: where tokens stand.
        hidden: the layer's inputs, ``[batch, nm + segments * ns, d_model]``.
        filled: which places hold a token, ``[batch, nm + segments * ns]``.
        q, k, v: ``[batch, heads, nm + segments * ns, head_dim]``.
        features: what the encoding knows of each, ``[batch, heads, nm + segments * ns, any]``, or None.
    """

    layout: Layout
    hidden: Tensor
    filled: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    features: Tensor | None

    def windows(self, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """The oldest window in the memory of segments ``first`` to ``stop - 1``, ``[batch, count, ns, d_model]``, and
        which of its places hold a token, ``[batch, count, ns]``."""
        ns = self.layout.length
        hidden, filled = (line[:, first * ns : stop * ns] for line in (self.hidden, self.filled))
        return hidden.unflatten(1, (stop - first, ns)), filled.unflatten(1, (stop - first, ns))

    def filled_segments(self, first: int, stop: int) -> Tensor:
        """Which places of segments ``first`` to ``stop - 1`` hold a token, ``[batch, count, ns]``."""
        past = self.layout.past
        return self.windows(first + past, stop + past)[1]


class Compressor(nn.Module):
    """f_c, which leaves one slot of ``rate`` places."""

    def __init__(self, d_model: int, rate: int) -> None:
        super().__init__()
        self.d_model, self.rate = d_model, rate


class Pooling(Compressor, ABC):
    """Windows ``[batch, count, ns, d_model]``, zero where ``filled`` ``[batch, count, ns]`` is False, to slots
    ``[batch, count, ns / rate, d_model]``, zero where they hold nothing, and which of them hold something."""

    def forward(self, old: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """A slot of every ``rate`` places."""
        group = (-1, self.rate)
        filled = filled.unflatten(2, group)
        kept = filled.any(3)
        slots = self.pooled(old.unflatten(2, group), filled[..., None])
        return slots.masked_fill(~kept[..., None], 0), kept

    @abstractmethod
    def pooled(self, old: Tensor, filled: Tensor) -> Tensor:
        """``[..., rate, d_model]``, with ``filled`` ``[..., rate, 1]``, to ``[..., d_model]``."""


class Mean(Pooling):
    """Mean pooling, over the places that hold a token."""

    def pooled(self, old: Tensor, filled: Tensor) -> Tensor:
        return (old * filled).sum(-2) / filled.sum(-2).clamp(min=1)


class Max(Pooling):
    """Max pooling, over the places that hold a token."""

    def pooled(self, old: Tensor, filled: Tensor) -> Tensor:
        return old.masked_fill(~filled, torch.finfo(old.dtype).min).amax(-2)


class Convolution(Pooling):
    """A convolution whose kernel and stride are ``rate``: a linear map of ``rate`` rows side by side, which starts as
    torch's convolutions do. Where a place holds nothing it reads zeros."""

    def __init__(self, d_model: int, rate: int) -> None:
        super().__init__(d_model, rate)
        self.map = OwnGroup(rate * d_model, d_model)

    def pooled(self, old: Tensor, filled: Tensor) -> Tensor:
        return self.map(old.masked_fill(~filled, 0).flatten(-2))


class MostUsed(Compressor):
    """Of every window the places that got most attention, in their order."""

    def most(self, old: Tensor, filled: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """``old`` ``[batch, ns, d_model]`` and attention ``used`` ``[batch, ns]`` to ``[batch, ns / rate, d_model]``
        and which of these hold something."""
        order = used.masked_fill(~filled, -1).argsort(dim=1, descending=True, stable=True)
        chosen = order[:, : old.shape[1] // self.rate].sort(1).values
        return old.gather(1, chosen[..., None].expand(-1, -1, old.shape[2])), filled.gather(1, chosen)


_COMPRESSORS = {"mean": Mean, "max": Max, "conv": Convolution, "most_used": MostUsed}


class OwnGroup(nn.Linear):
    """A linear map whose parameters are a group of the optimizer apart from the network's, clipped by its own norm."""

    def __init__(self, width: int, into: int) -> None:
        super().__init__(width, into)
        self.own_group = {"weight": {"clip": "compressor"}, "bias": {"clip": "compressor"}}


@dataclass(frozen=True)
class Evicted:
    """Windows that leave the memory, and the segments that read them last; constant but for what f_c has made.

    Args:
        old, filled: ``[windows, ns, d_model]``, and which places hold a token, ``[windows, ns]``.
        slots, kept: ``[windows, ns / rate, d_model]``, and which of them hold something, ``[windows, ns / rate]``.
        q, asked: queries ``[windows, heads, ns, head_dim]``, and which are tokens', ``[windows, ns]``.
        of_old, of_slots: keys and values, each ``[windows, heads, ns or ns / rate, head_dim]``.
    """

    old: Tensor
    filled: Tensor
    slots: Tensor
    kept: Tensor
    q: Tensor
    asked: Tensor
    of_old: tuple[Tensor, Tensor]
    of_slots: tuple[Tensor, Tensor]


class Reconstruction(Protocol):
    """What slots have lost, ``[windows]``."""

    def __call__(self, evicted: Evicted) -> Tensor: ...


class AttentionError(nn.Module):
    """``|| att(h, old) - att(h, slots) ||``."""

    def forward(self, evicted: Evicted) -> Tensor:
        def att(keys: tuple[Tensor, Tensor], filled: Tensor) -> Tensor:
            q = evicted.q
            mask = torch.where(filled, q.new_zeros(()), torch.finfo(q.dtype).min)[:, None, None, :]
            return scaled_dot_product_attention(q, keys[0].to(q.dtype), keys[1].to(q.dtype), attn_mask=mask)

        gap = att(evicted.of_old, evicted.filled) - att(evicted.of_slots, evicted.kept)
        gap = wide(gap).masked_fill(~evicted.asked[:, None, :, None], 0)
        return torch.linalg.vector_norm(gap, dim=(1, 2, 3))


class CodingError(nn.Module):
    """``|| old - g(slots) ||``."""

    def __init__(self, d_model: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.decoder = OwnGroup(d_model, rate * d_model)

    def forward(self, evicted: Evicted) -> Tensor:
        decoded = self.decoder(evicted.slots).unflatten(2, (self.rate, -1)).flatten(1, 2)
        gap = wide(evicted.old - decoded).masked_fill(~evicted.filled[..., None], 0)
        return torch.linalg.vector_norm(gap, dim=(1, 2))
