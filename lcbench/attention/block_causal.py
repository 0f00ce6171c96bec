"""Blockwise causal attention (BCA): a mechanism reads beyond its trained length as if it were never beyond.

Sun, Dong, Patra, Ma, Huang, Benhaim, Chaudhary, Song, Wei, "A Length-Extrapolatable Transformer", 2022, arXiv
2212.10554; used for every mechanism that LongNet (Ding et al. 2023, arXiv 2307.02486) is compared with. With T the
trained length, a sequence is cut into blocks of T/2, and in evaluation

    a query in block b sees its own block, up to itself, and block b - 1

so never more than T tokens. For a mechanism of any kind that is: it reads blocks b - 1 and b as a sequence of T tokens
of its own, at positions 0 to T - 1, and what it gives in the second half counts. Up to position T - 1 nothing changes.
In training it is the mechanism within, and nothing else.

Blocks are read in two streams, each of whole pairs and each from a fresh start at every pair: the even one of blocks
(0, 1), (2, 3), ..., which gives what odd blocks and block 0 read, and the odd one of (1, 2), (3, 4), ..., which gives
what the others read. Every token is so read twice, and the state is that of both streams, each in its unfinished pair.

Where positions are not alike in all rows, a pair is told to the mechanism as a document of its own.

A mechanism that remembers beyond its trained length by design would be made to forget; it is refused. So is an
encoding that adds absolute places, which start over with every pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lcbench.attention.base import Attention, AttentionOutput, Context, State
from lcbench.attention.cache import Cache
from lcbench.attention.segments import Reached
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.units import Length


@dataclass(frozen=True)
class BlockState(State):
    """
    Args:
        streams: the mechanism's state in the unfinished pair of the even and of the odd stream; None where a stream
            has read nothing of it.
        pairs: how many pairs of each stream a row had begun when rows ceased to be alike, and since; int64
            ``[batch, 2]``.
        reached: the last token of each row.
        alike: whether all rows were alike in all calls, without documents or padding.
    """

    streams: tuple[State | None, State | None]
    pairs: Tensor
    reached: Reached
    alike: bool


class BlockCausal(Attention):
    """The mechanism within, evaluated in blocks.

    Args:
        shape: the network's shape.
        position: the layer's encoding, of distances.
        inner: makes the mechanism; ``attention.inner=dilated attention.inner.segments=[...]`` configures it.
        length: T, tokens of a training example; even.

    Raises:
        ConfigurationError: for a length that cannot be halved, a mechanism that remembers, and an encoding that adds
            absolute places.
    """

    evaluation_differs = True
    footprint = "twice that of the mechanism within, at most T tokens"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        inner: Callable[[LayerShape, PositionEncoding], Attention],
        *,
        length: Length,
    ) -> None:
        super().__init__(shape, position)
        if length < 2 or length % 2:
            raise ConfigurationError(
                f"attention.length={length} cannot be halved; the closest is "
                f"attention.length={max(2, length + length % 2)}."
            )
        if type(position).embed is not PositionEncoding.embed:
            raise ConfigurationError(
                f"position {type(position).__name__} adds absolute places, which attention=block_causal starts over "
                "in every pair of blocks; the closest choices are position=rope and position=none."
            )
        self.inner = inner(shape, position)
        if self.inner.remembers or isinstance(self.inner, BlockCausal):
            raise ConfigurationError(
                f"attention.inner={type(self.inner).__name__} carries what lies beyond the trained length by design, "
                "and blocks would cut it off; evaluate it as it is, or take attention.inner=full."
            )
        self.length = length
        self.segment = self.inner.segment
        self.own_losses = self.inner.own_losses

    def share(self, first: Attention) -> None:
        self.inner.share(first.inner if isinstance(first, BlockCausal) else first)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is a ``BlockState``, in training that of the mechanism."""
        if self.training:
            return self.inner(x, context, state)
        before = state if isinstance(state, BlockState) else None
        start = context.start
        if start is not None and (before is None or before.alike):
            return self._alike(x, context, start, before)
        return self._apart(x, context, before)

    def _alike(self, x: Tensor, context: Context, start: int, before: BlockState | None) -> AttentionOutput:
        """The same positions in all rows: pairs are slices of time, whole ones are read together."""
        carried = (None, None) if before is None else before.streams
        outputs, states = [], []
        for first, inner in zip((0, self.length // 2), carried, strict=True):
            y, after = self._stream(x, context, start, first, inner)
            outputs.append(y)
            states.append(after)
        reached = Reached(torch.ones_like(context.positions[:, -1], dtype=torch.bool), context.positions[:, -1])
        pairs = torch.zeros(len(x), 2, dtype=torch.int64, device=x.device) if before is None else before.pairs
        even, odd = outputs
        y = torch.where(self._odd_stream(context.positions)[..., None], odd.to(even.dtype), even)
        return AttentionOutput(y, BlockState((states[0], states[1]), pairs, reached, True))

    def _stream(
        self, x: Tensor, context: Context, start: int, first: int, inner: State | None
    ) -> tuple[Tensor, State | None]:
        """What a stream whose pairs begin at positions ``first``, ``first + T``, ... reads of ``x``, ``[batch, time,
        d_model]``; anything for tokens before ``first``. And the mechanism's state in the unfinished pair."""
        skipped = min(max(0, first - start), x.shape[1])
        outputs: list[Tensor] = []
        done, state = skipped, inner if start > first else None
        while done < x.shape[1]:
            place = (start + done - first) % self.length
            whole = (x.shape[1] - done) // self.length if place == 0 else 0
            stop = done + whole * self.length if whole else min(x.shape[1], done + self.length - place)
            part = x[:, done:stop]
            if whole:
                rows = part.unflatten(1, (whole, -1)).flatten(0, 1)  # [batch * whole, T, d_model]
                places = torch.arange(self.length, device=x.device).expand(len(rows), -1)
                y = self.inner(rows, Context(places)).y.unflatten(0, (-1, whole)).flatten(1, 2)
                state = None
            else:
                places = torch.arange(place, place + stop - done, device=x.device).expand(len(x), -1)
                output = self.inner(part, Context(places), None if place == 0 else state)
                finished = place + stop - done == self.length
                y, state = output.y, None if finished else output.state
            outputs.append(y)
            done = stop
        dtype = outputs[0].dtype if outputs else x.dtype
        return torch.cat([x[:, :skipped].to(dtype), *outputs], 1), state

    def _odd_stream(self, positions: Tensor) -> Tensor:
        """Whether the odd stream says what a token reads: in blocks 2, 4, ..."""
        block = positions // (self.length // 2)
        return (block % 2 == 0) & (block > 0)

    def _apart(self, x: Tensor, context: Context, before: BlockState | None) -> AttentionOutput:
        """Rows differ: every pair is a document of its own, and its tokens' positions are their places in it."""
        positions = context.positions
        batch, time = positions.shape
        padding = torch.zeros_like(positions, dtype=torch.bool) if context.padding is None else context.padding
        documents = torch.zeros_like(positions) if context.documents is None else context.documents
        if before is None:
            nothing = Reached(padding.new_zeros(batch), positions.new_zeros(batch))
            before = BlockState((None, None), positions.new_zeros(batch, 2), nothing, False)
        reached = before.reached
        named = context.documents is not None or reached.document is not None
        document = torch.zeros_like(reached.position) if reached.document is None else reached.document

        # index, in [reached, *tokens], of the last token up to each place: at 0 what was reached before
        index = torch.where(padding, 0, torch.arange(1, time + 1, device=positions.device)).cummax(1).values
        index = torch.cat([torch.zeros_like(index[:, :1]), index], 1)  # [batch, 1 + time]
        at = torch.cat([reached.position[:, None], positions], 1).gather(1, index)
        of = torch.cat([document[:, None], documents], 1).gather(1, index)
        read = (index > 0) | reached.read[:, None]

        outputs, states, pairs = [], [], []
        for stream, first in enumerate((0, self.length // 2)):
            number = (at + self.length - first) // self.length
            begins = (of[:, 1:] != of[:, :-1]) | (number[:, 1:] != number[:, :-1]) | ~read[:, :-1]
            pair = before.pairs[:, stream, None] + (begins & ~padding).cumsum(1)  # [batch, time]
            places = (positions + self.length - first) % self.length
            told = dataclasses.replace(context, positions=places, documents=pair)
            output = self.inner(x, told, before.streams[stream])
            outputs.append(output.y)
            # what a row read before its pair is hidden, and is not kept for ever
            after = output.state
            states.append(after.recent(self.length) if isinstance(after, Cache) else after)
            pairs.append(pair[:, -1])
        reached = Reached(read[:, -1], at[:, -1], of[:, -1] if named else None)
        y = torch.where(self._odd_stream(positions)[..., None], outputs[1], outputs[0])
        return AttentionOutput(y, BlockState((states[0], states[1]), torch.stack(pairs, 1), reached, False))

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """The mechanism's own in the unfinished pair of both streams, pairs and the last token's facts."""
        if self.training:
            return self.inner.state_bytes(batch, length, dtype)
        read = [max(0, length - first) % self.length for first in (0, self.length // 2)]
        return batch * (16 + 9) + sum(self.inner.state_bytes(batch, tokens, dtype) for tokens in read if tokens)
