"""Shifted sparse attention (S2-Attn of LongLoRA): trained in groups, read in full.

Chen, Qian, Tang, Lai, Liu, Han, Jia, "LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models", ICLR
2024, arXiv 2309.12307. In training, with groups of G tokens, a token at position i reads the tokens up to itself in

    its group floor(i / G)                 in the first half of the heads
    its group floor((i + G/2) / G)         in the second half: the borders lie at G/2, 3 G/2, ...

so that two layers pass information from group to group, at N G pairs instead of N^2. In evaluation every token reads
its whole past, with the same weights: G is a means of training, and evaluating in groups is worse than what the paper
reports. The paper takes a quarter of the trained length for G.

The paper's algorithm makes the second half by rolling its heads back by G/2 along the sequence, grouping them, and
rolling them forward again. Its last group then holds the last G/2 tokens and behind them the first G/2, which read the
end of the sequence: a leak of the future. The authors' faster code cuts the sequence at G/2 instead, as the equation
above does and as is the default here; ``form=rolled`` reproduces the leak. They differ nowhere but in the second half
of the heads at the first G/2 positions.

In evaluation the state is the key-value cache of full attention; in training the last G - 1 tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lcbench.attention.base import AttentionOutput, Context, Looks, State
from lcbench.attention.cache import KeyValues
from lcbench.attention.multi_head import MultiHead
from lcbench.attention.reach import Segment
from lcbench.attention.scoring import attend, looks
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.units import Length


class Shifted(MultiHead):
    """Groups in training, shifted by half in half of the heads; full attention in evaluation.

    Args:
        shape: the network's shape; the number of heads is even.
        position: the layer's encoding.
        length: N, tokens of a training example; sets ``group`` where that is null.
        group: G, even; null for a quarter of ``length``, rounded up to an even number.
        form: groups cut at the beginning of the sequence (cut), or rolled around its end, which leaks (rolled).

    Raises:
        ConfigurationError: for groups or heads that cannot be halved, and an encoding that cannot look ahead in the
            rolled form.
    """

    evaluation_differs = True
    footprint = "H (dk + dv) T"

    def __init__(
        self,
        shape: LayerShape,
        position: PositionEncoding,
        *,
        length: Length = 1024,
        group: Length | None = None,
        form: Literal["cut", "rolled"] = "cut",
    ) -> None:
        super().__init__(shape, position)
        if group is None:
            group = max(2, 2 * -(-length // 8))
        if group < 2 or group % 2:
            closest = max(2, group + group % 2)
            raise ConfigurationError(
                f"attention.group={group} cannot be shifted by half; the closest is attention.group={closest}."
            )
        if shape.n_heads % 2:
            raise ConfigurationError(
                f"model.n_heads={shape.n_heads} with attention=shifted: half of the heads are shifted, so their "
                f"number must be even, such as model.n_heads={shape.n_heads + 1}."
            )
        if form == "rolled" and not position.reads_ahead:
            raise ConfigurationError(
                f"attention.form=rolled lets the first tokens read the last, and position {type(position).__name__} "
                "knows no keys after the query; the closest choices are position=rope and attention.form=cut."
            )
        self.segment: int = group
        self.group = group
        self.rolled = form == "rolled"

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        """Read ``x`` ``[batch, time, d_model]``; ``state`` is the ``KeyValues`` of what was read before.

        Raises:
            ConfigurationError: in the rolled form's training, for anything but whole sequences that groups divide.
        """
        q, keys = self.project(x, context)
        if isinstance(state, KeyValues):
            keys = state.append(keys)
        if not self.training:
            return AttentionOutput(self.merge(attend(q, context, keys, self.position)), keys)
        half = self.shape.n_heads // 2
        first = self._grouped(q, context, keys, slice(0, half), 0)
        if self.rolled:
            second = self._rolled(q, context, keys, slice(half, None), state)
        else:
            second = self._grouped(q, context, keys, slice(half, None), self.group // 2)
        return AttentionOutput(self.merge(torch.cat([first, second], 1)), keys.recent(self.group - 1))

    def _grouped(self, q: Tensor, context: Context, keys: KeyValues, heads: slice, shift: int) -> Tensor:
        """What ``heads`` read in groups whose borders lie ``shift`` before multiples of G: ``[batch, heads / 2, time,
        head_dim]``."""
        reach = Segment(self.group, shift=shift)
        position = self.position.of_heads(heads)
        return attend(q[:, heads], context, _of_heads(keys, heads), position, reach=reach, dropout=self.dropped)

    def _rolled(self, q: Tensor, context: Context, keys: KeyValues, heads: slice, state: State | None) -> Tensor:
        """The same with the sequence rolled back by G/2: its first tokens stand behind its last."""
        time = q.shape[2]
        if state is not None or context.start != 0 or time % self.group:
            raise ConfigurationError(
                f"attention.form=rolled is defined for whole sequences without padding or documents, in multiples of "
                f"attention.group={self.group} tokens, and this one has {time}; the closest choice is "
                "attention.form=cut."
            )
        groups = time // self.group

        def fold(tensor: Tensor) -> Tensor:
            """``[batch, heads, time, any]`` to ``[batch * groups, heads, G, any]``, rolled."""
            return tensor.roll(-self.group // 2, 2).unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)

        at = Context(fold(context.positions[:, None, :, None])[:, 0, :, 0], consecutive=False)
        own = _of_heads(keys, heads)
        features = None if own.features is None else fold(own.features)
        folded = KeyValues.of(fold(own.k), fold(own.v), features, at)
        o = attend(fold(q[:, heads]), at, folded, self.position.of_heads(heads), dropout=self.dropped)
        return o.unflatten(0, (-1, groups)).transpose(1, 2).flatten(2, 3).roll(self.group // 2, 2)

    def looks(self, x: Tensor, context: Context) -> Looks:
        """See ``Attention.looks``."""
        q, keys = self.project(x, context)
        return looks(q, context, keys, self.position)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Keys, values and features of every token, and its position; in training of the last G - 1."""
        kept = min(length, self.group - 1) if self.training else length
        return batch * kept * self.key_bytes(dtype.itemsize)


def _of_heads(keys: KeyValues, heads: slice) -> KeyValues:
    """The keys and values of some heads."""
    return KeyValues(
        keys.k[:, heads],
        keys.v[:, heads],
        None if keys.features is None else keys.features[:, heads],
        positions=keys.positions,
        documents=keys.documents,
        padding=keys.padding,
        consecutive=keys.consecutive,
    )
