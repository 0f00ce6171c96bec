"""Transformer-XL: attention over the own segment and a memory of the hidden states before it.

Dai, Yang, Yang, Carbonell, Le, Salakhutdinov, "Transformer-XL: Attentive Language Models Beyond a Fixed-Length
Context", 2019, arXiv 1901.02860. A document is cut into segments of L positions. With h the layer's input and m its
input at the M positions before the segment:

    q = W_q h,   k = W_k [m; h],   v = W_v [m; h]
    o = softmax(c q k^T + what the encoding adds) v          a query sees m, and its segment up to itself
    y = W_o o

The first query of a segment so sees M + 1 keys and the last M + L. With "same length", the authors' protocol of
evaluation, every query sees exactly the M keys up to and including itself, whatever the segment.

The state is hidden states, not keys and values, so the maps W_k and W_v get gradient from memory rows too, and no key
was made with older weights. Nothing is detached here: the engine detaches states between calls, and fed one segment a
call that is the paper's stop-gradient. What is cached is what the layer reads, so with pre-norm its norm is in it, as
it was when the row was read; with post-norm, the paper's, the two are the same. The longest dependency grows with the
number of layers times M. The paper's encoding is ``position=transformer_xl``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lcbench.attention.base import AttentionOutput, Context, Looks, State
from lcbench.attention.cache import Cache, KeyValues
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.reach import Reach, Segment, Window
from lcbench.attention.scoring import attend, looks
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.units import Length


@dataclass(frozen=True)
class HiddenStates(Cache):
    """What a layer has read.

    Args:
        hidden: the layer's inputs, ``[batch, time, d_model]``.
    """

    hidden: Tensor

    @staticmethod
    def of(x: Tensor, context: Context) -> HiddenStates:
        """The inputs ``x`` ``[batch, time, d_model]`` of the tokens that ``context`` describes."""
        return HiddenStates(
            x,
            positions=context.positions,
            documents=context.documents,
            padding=context.padding,
            consecutive=context.consecutive,
        )


class TransformerXL(MultiHead):
    """Segments, each with a memory of the one or more before it.

    Args:
        shape: the network's shape.
        position: the layer's encoding; with a memory, one of distances.
        segment: L, positions in a segment.
        memory: M, positions before the segment that it sees; null for L, as the paper trains.
        same_length: let every query see exactly the last M keys, itself included, in training too: meant for
            evaluation, where it makes contexts comparable. No weight depends on it, nor on L and M.

    Raises:
        ConfigurationError: for sizes at which a query sees nothing, and for an encoding that the memory defeats.
    """

    remembers = True
    footprint = "d (M + L - 1)"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        segment: Length = 64,
        memory: Length | None = None,
        same_length: bool = False,
    ) -> None:
        super().__init__(shape, position)
        memory = segment if memory is None else memory
        if segment < 1:
            raise ConfigurationError(f"attention.segment={segment} holds nothing; the least is attention.segment=1.")
        least = 1 if same_length else 0
        if memory < least:
            raise ConfigurationError(
                f"attention.memory={memory} with attention.same_length={str(same_length).lower()} is no size; "
                f"the least is attention.memory={least}."
            )
        if memory:
            refuse_absolute(position, f"attention.memory={memory}", "attention.memory=0")
        self.segment: int = segment
        self.reach: Reach = Window(memory) if same_length else Segment(segment, memory=memory)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is the ``HiddenStates`` of the last tokens before."""
        read = HiddenStates.of(x, context)
        if isinstance(state, HiddenStates):
            read = state.append(read)
        keys = self.keys_of(read.hidden, read)
        o = attend(self.split(self.q(x)), context, keys, self.position, reach=self.reach, dropout=self.dropped)
        return AttentionOutput(self.merge(o), read.recent(self.reach.places - 1))

    def keys_of(self, x: Tensor, facts: Cache) -> KeyValues:
        """Keys and values of ``x`` ``[batch, time, d_model]``, whose tokens ``facts`` describes."""
        k, v = self.split(self.k(x)), self.split(self.v(x))
        return KeyValues(
            k,
            v,
            self.position.key_features(x, k, v),
            positions=facts.positions,
            documents=facts.documents,
            padding=facts.padding,
            consecutive=facts.consecutive,
        )

    def looks(self, x: Tensor, context: Context) -> Looks:
        """See ``Attention.looks``."""
        keys = self.keys_of(x, HiddenStates.of(x, context))
        return looks(self.split(self.q(x)), context, keys, self.position, reach=self.reach)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Hidden states and positions of the memory and all but one of the segment's tokens; of M - 1 tokens with the
        same length for all."""
        return batch * min(length, self.reach.places - 1) * (self.shape.d_model * dtype.itemsize + 8)


def refuse_absolute(position: PositionEncoding, because: str, otherwise: str) -> None:
    """Raise ``ConfigurationError`` for an encoding that adds to the input; ``because`` of an option, unless
    ``otherwise``."""
    if type(position).embed is not PositionEncoding.embed:
        raise ConfigurationError(
            f"position {type(position).__name__} adds absolute places, from which no distance to the states that "
            f"{because} reuses can be read; the closest choices are position=transformer_xl and {otherwise}."
        )
