"""Recurrent memory: a few vectors, carried from segment to segment, are all that a network remembers.

RMT: Bulatov, Kuratov, Burtsev, "Recurrent Memory Transformer", 2022, arXiv 2207.06881. AutoCompressor: Chevalier,
Wettig, Ajith, Chen, "Adapting Language Models to Compress Contexts", 2023, arXiv 2305.14788.

Documents are cut into segments X of L tokens. With m memory vectors S ``[m, d_model]``, in RMT learned for the first
segment,

    [read ; H ; write] = Decoder([S ; X ; W]),    logits from H,    S' = write for the next segment

- Tokens are causal and see all of S before them; the slots of S see each other and nothing of the segment; those of W
  see everything, and each other both ways. So no token sees a slot that was written after it.
- RMT (``write=carried``): W is S once more. AutoCompressor (``write=learned``): W are learned summary tokens.
- AutoCompressor (``accumulate=true``): what every earlier segment wrote is kept, and S is all of it, oldest first; RMT
  keeps only the last. With learned W the first segment has no S.

Slots take positions as tokens do: a segment's positions are 0 .. slots - 1 for S, then the tokens, then W. What is
written is the decoder's last hidden state, after its final norm, times ``d_model ** -0.5``: the size of embeddings,
which it stands beside in the next segment.

The gradient flows through S over all segments that are read without a detached state; ``trainer.bptt_segments`` cuts
it. A segment is written when the next one begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lcbench.attention.base import Attention, Facts, Run, State
from lcbench.attention.cache import Cache
from lcbench.attention.segments import Piece, Reached, Segments, where
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model, ModelOutput, ModelState, place
from lcbench.model.decoder import Decoder
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.units import Length


@dataclass(frozen=True)
class Slots(Cache):
    """What was written: ``x`` ``[batch, slots, d_model]``, padding where a row has fewer than others."""

    x: Tensor


@dataclass(frozen=True)
class RecurrentState(State):
    """
    Args:
        slots: what earlier segments of the row's document wrote.
        inner: the decoder's state in the unfinished segment.
        reached: the last token read.
    """

    slots: Slots
    inner: ModelState
    reached: Reached


class RecurrentMemory(Model):
    """A decoder that reads one segment at a time, and remembers by memory vectors alone.

    Args:
        vocabulary_size: number of token ids.
        attention: see ``Decoder``; reads within a segment.
        position: see ``Decoder``.
        segment: L, tokens in a segment.
        slots: m, vectors that a segment writes; 0: every segment is read alone.
        write: what the vectors to be written start from: what was carried into the segment (RMT), or learned ones
            (AutoCompressor).
        accumulate: whether the vectors of all earlier segments are carried (AutoCompressor) or the last ones (RMT).
        both_ways: whether slots see each other in both directions, as in RMT; null: wherever the mechanism and the
            encoding can.
        d_model, n_layers, n_heads, d_ff, norm, norm_position, activation, tie_embeddings, dropout, bias: see
            ``Decoder``.

    Raises:
        ConfigurationError: for sizes that hold nothing, vectors that are both carried and accumulated, or slots that
            cannot see both ways.
    """

    def __init__(
        self,
        vocabulary_size: int,
        attention: Callable[[LayerShape, PositionEncoding], Attention],
        position: Callable[[LayerShape], PositionEncoding],
        *,
        segment: Length = 64,
        slots: int = 8,
        write: Literal["carried", "learned"] = "carried",
        accumulate: bool = False,
        both_ways: bool | None = None,
        d_model: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        d_ff: int | None = None,
        norm: Literal["layer", "rms"] = "layer",
        norm_position: Literal["pre", "post"] = "pre",
        activation: Literal["relu", "gelu", "swiglu"] = "gelu",
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if segment < 1:
            raise ConfigurationError(f"model.segment={segment} holds nothing; the least is model.segment=1.")
        if slots < 0:
            raise ConfigurationError(f"model.slots={slots} is negative; the least is model.slots=0.")
        if accumulate and write == "carried":
            raise ConfigurationError(
                "model.accumulate=true: what is carried grows with every segment, so that it cannot be written over; "
                "add model.write=learned."
            )
        self.decoder = Decoder(
            vocabulary_size,
            attention,
            position,
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
            d_ff=d_ff,
            norm=norm,
            norm_position=norm_position,
            activation=activation,
            tie_embeddings=tie_embeddings,
            dropout=dropout,
            bias=bias,
        )
        self.d_model = d_model
        first = self.decoder.attentions[0]
        able = first.reads_together and first.position.reads_ahead
        if both_ways and slots and not able:
            what = "position encoding" if first.reads_together else "attention"
            raise ConfigurationError(
                f"model.both_ways=true: this {what} reads backwards only; add model.both_ways=false, or take "
                "attention=full with position=rope."
            )
        self._segment, self.slots, self.accumulate = segment, slots, accumulate
        self.both_ways = able if both_ways is None else both_ways
        self.size = d_model**-0.5
        #: whether layers have losses, which are then those of a segment's tokens alone
        self.losing = any(attention.own_losses for attention in self.decoder.attentions)
        # different vectors: only positions would tell equal ones apart
        vectors = nn.Parameter(torch.randn(slots, d_model) * self.size)
        self.start = vectors if write == "carried" else None
        self.summary = vectors if write == "learned" else None

    @property
    def segment(self) -> int:
        return self._segment

    def forward(self, tokens: Tensor, context: Facts | None = None, state: ModelState | None = None) -> ModelOutput:
        """See ``Model.forward``: ``tokens`` ``[batch, time]``, logits ``[batch, time, vocabulary]``."""
        network = f"recurrent memory of {self.slots} slots a segment of {self._segment}, {self.decoder.described}"
        placement = place(tokens, context, state, network)
        known = state.layers[0] if state is not None else None
        assert known is None or isinstance(known, RecurrentState)
        x = self.decoder.embedding(tokens)  # [batch, time, d_model]
        segments = Segments(placement.context, self._segment, known.reached if known else None)
        slots = known.slots if known else self._first(x)
        inner = known.inner if known else None
        outputs = []
        pieces = segments.pieces
        for piece, following, part in zip(pieces, [*pieces[1:], None], segments.split(x), strict=True):
            if piece.opens is True and slots.padding is None and not self.losing:
                slots = slots if inner is None else self._written(piece, slots, inner)
                ends = following is not None and following.opens is True
                output, slots, inner = self._read_opening(part, slots, ends)
            else:
                slots, inner = self._opened(piece, slots, inner)
                output = self._read(part, inner, piece.padding, together=False)
                inner = self._bounded(output.state, slots)
            outputs.append(output)
        assert inner is not None
        losses = {name: [o.losses[name] for o in outputs] for name in outputs[0].losses}
        return ModelOutput(
            unembed=outputs[-1].unembed,
            vocabulary_size=outputs[-1].vocabulary_size,
            state=replace(placement.reached, layers=(RecurrentState(slots, inner, segments.reached),)),
            hidden=segments.join([output.hidden for output in outputs]),
            keys=segments.join([output.keys for output in outputs]),
            losses={name: torch.stack(values).mean() for name, values in losses.items()},
            measures=outputs[-1].measures,
        )

    def _first(self, x: Tensor) -> Slots:
        """What the first segment of a document is given, for as many rows as ``x`` ``[batch, time, d_model]`` has."""
        start = x.new_zeros(0, x.shape[-1]) if self.start is None else self.start.to(x.dtype)
        batch = x.shape[0]
        positions = torch.zeros(batch, len(start), dtype=torch.int64, device=x.device)
        return Slots(start.expand(batch, -1, -1), positions=positions)

    def _read_opening(self, x: Tensor, slots: Slots, ends: bool) -> tuple[ModelOutput, Slots, ModelState | None]:
        """A segment's first tokens ``x`` ``[batch, time, d_model]``, in all rows, in one pass: [S ; X], or where it
        ``ends`` [S ; X ; W]. Returns what is carried on, and the decoder's state in a segment that goes on."""
        parts = [slots.x.to(x.dtype), x, *([self._vectors(slots).to(x.dtype)] if ends else [])]
        whole = torch.cat(parts, 1)
        runs = [Run(part.shape[1], part is not x) for part in parts if part.shape[1]] if self.both_ways else []
        output = self.decoder.read(whole, place(whole[..., 0], Facts(), None), None, runs)
        tokens = slice(slots.length, slots.length + x.shape[1])
        found = output.times(tokens.start, tokens.stop)
        if not ends:
            return found, slots, self._bounded(output.state, slots)
        if self.slots:
            slots = self._carried(slots, output.hidden[:, tokens.stop :], None)
        return found, slots, None

    def _vectors(self, slots: Slots) -> Tensor:
        """W, ``[batch, slots, d_model]``: what the vectors that are written next start from."""
        return slots.x if self.summary is None else self.summary.expand(len(slots.x), -1, -1)

    def _carried(self, slots: Slots, hidden: Tensor, padding: Tensor | None) -> Slots:
        """The slots after ``hidden`` ``[batch, slots, d_model]`` was written; ``padding`` where it was not."""
        written = (hidden * self.size).to(slots.x.dtype)
        positions = torch.zeros(written.shape[:2], dtype=torch.int64, device=written.device)
        slots = slots.append(Slots(written, positions=positions, padding=padding))
        if not self.accumulate:
            return slots.recent(self.slots)
        return slots if slots.padding is None else slots.recent(int((~slots.padding).sum(1).max()))

    def _opened(self, piece: Piece, slots: Slots, inner: ModelState | None) -> tuple[Slots, ModelState | None]:
        """The slots and the decoder's state as the piece's tokens find them, new segments begun where it says so."""
        if inner is None:
            rows: bool | Tensor = piece.opens if isinstance(piece.opens, Tensor) else True
        else:
            rows = piece.opens
            if rows is False or (isinstance(rows, Tensor) and not bool(rows.any())):
                return slots, inner
            slots = self._written(piece, slots, inner)
            inner = inner.reset(rows) if isinstance(rows, Tensor) else None
        if not slots.length:
            return slots, inner
        padding = slots.padding
        if isinstance(rows, Tensor):
            others = ~rows[:, None].expand(-1, slots.length)
            padding = others if padding is None else padding | others
        return slots, self._read(slots.x, inner, padding, together=self.both_ways).state

    def _written(self, piece: Piece, slots: Slots, inner: ModelState) -> Slots:
        """The slots after the finished segments of ``inner`` were written."""
        if not self.slots:
            return slots
        vectors, padding = self._vectors(slots).to(slots.x.dtype), None
        if isinstance(piece.opens, Tensor):
            # a document that ended needs no memory of its last segment
            writes = piece.opens & ~piece.clears
            padding = ~writes[:, None].expand(-1, self.slots)
            slots = slots.reset(piece.clears)  # type: ignore[arg-type]
        slots = self._carried(slots, self._read(vectors, inner, padding, together=self.both_ways).hidden, padding)
        if self.start is not None and isinstance(piece.clears, Tensor) and slots.padding is not None:
            first = self._first(slots.x)
            padding = slots.padding & ~piece.clears[:, None]
            slots = replace(slots, x=where(piece.clears, first.x, slots.x), padding=padding)
        return slots

    def _read(self, x: Tensor, inner: ModelState | None, padding: Tensor | None, *, together: bool) -> ModelOutput:
        """The decoder's output for embedded tokens or slots ``x`` ``[batch, time, d_model]``."""
        placement = place(x[..., 0], Facts(padding=padding, together=together), inner)
        return self.decoder.read(x, placement, inner)

    def _bounded(self, inner: ModelState, slots: Slots) -> ModelState:
        """The decoder's state without what rows have read before their segment, which is hidden already."""
        most = slots.length + self._segment
        layers = tuple(layer.recent(most) if isinstance(layer, Cache) else layer for layer in inner.layers)
        return replace(inner, layers=layers) if inner.padded else inner

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """See ``Model.state_bytes``: the slots, and the decoder's state in the unfinished segment."""
        finished = (length - 1) // self._segment
        carried = finished if self.accumulate else min(finished, 1)
        slots = self.slots * (carried if self.start is None else 1)
        width = self.decoder.embedding.embedding_dim * dtype.itemsize + 8
        tokens = (length - 1) % self._segment + 1
        # next position, and the last token's facts
        return batch * (slots * width + 8 + 9) + self.decoder.state_bytes(batch, slots + tokens, dtype)
