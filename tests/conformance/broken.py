"""Layers that each break the interface in one way that people have broken it."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.position.base import LayerShape, PositionEncoding
from tests.conformance.layers import Linear, Past, Plain, TwoWay


class LeaksTheFuture(Plain):
    """The mask lets the next token through."""

    def visible(self, new: Past, past: Past) -> Tensor:
        q_time, k_time = new.k.shape[1], past.k.shape[1]
        shifted = torch.ones(q_time, k_time, dtype=torch.bool, device=new.k.device).tril(k_time - q_time + 1)
        return shifted & (new.documents[:, :, None] == past.documents[:, None]) & ~past.hidden[:, None]


class LeaksInsideASegment(Plain):
    """The memory is updated with a segment of 4 before the segment reads it."""

    def visible(self, new: Past, past: Past) -> Tensor:
        segments = new.positions[:, :, None] // 4 == past.positions[:, None] // 4
        same = (new.documents[:, :, None] == past.documents[:, None]) & ~past.hidden[:, None]
        return super().visible(new, past) | (segments & same)


class LeaksByGradientAlone(Plain):
    """The value is causal, the gradient is not, as with a statistic over the whole input."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        total = x.mean(1, keepdim=True)
        return super().mix(x, new, past, visible) + (total - total.detach())


class AlignsTopLeft(Plain):
    """With a cache, the causal mask is aligned with the first key instead of the last."""

    def visible(self, new: Past, past: Past) -> Tensor:
        q_time, k_time = new.k.shape[1], past.k.shape[1]
        same = (new.documents[:, :, None] == past.documents[:, None]) & ~past.hidden[:, None]
        return torch.ones(q_time, k_time, dtype=torch.bool, device=new.k.device).tril() & same


class LosesTheTokenBeforeABorder(Plain):
    """The last token of a chunk is invisible from the next chunk."""

    def visible(self, new: Past, past: Past) -> Tensor:
        visible, border = super().visible(new, past), past.k.shape[1] - new.k.shape[1]
        index = torch.arange(past.k.shape[1], device=new.k.device)
        return visible & (index != border - 1)


class ForgetsItsState(Plain):
    """The returned state holds the last chunk only."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        return AttentionOutput(super().forward(x, context, state).y, self.read(x, context))


class IgnoresItsState(Plain):
    """The state is right, and nobody reads it."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        return AttentionOutput(super().forward(x, context, None).y, super().forward(x, context, state).state)


class ReturnsNoState(Plain):
    """None is returned as the state, and any state is accepted."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        return AttentionOutput(super().forward(x, context).y, None)


class MutatesItsState(Plain):
    """The cache is a buffer that a call writes into."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        output = super().forward(x, context, state)
        if isinstance(state, Past):
            state.k.data.zero_()
        return output


class MutatesItsContext(Plain):
    """Positions are advanced in place."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        output = super().forward(x, context, state)
        context.positions.add_(1)
        return output


class DetachesItsState(Plain):
    """Backpropagation is cut at the caller's chunks, which is the engine's decision."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        return super().forward(x, context, state if state is None else state.detach())


class _NeverDetaches(Past):
    def detach(self) -> Past:
        return self


class _SelectsTheFirstRows(Past):
    def select(self, rows: Tensor) -> Past:
        return self.map(lambda tensor: tensor[: len(rows)])


class _ResetsNothing(Past):
    def reset(self, rows: Tensor) -> Past:
        return self


class _ResetsEverything(Past):
    def reset(self, rows: Tensor) -> Past:
        return dataclasses.replace(self, hidden=torch.ones_like(self.hidden))


class WithAnotherState(Plain):
    """The state breaks a law of states."""

    kind: ClassVar[type[Past]]

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        output = super().forward(x, context, state)
        assert isinstance(output.state, Past)
        return AttentionOutput(output.y, self.kind(**vars(output.state)))


class NeverDetaches(WithAnotherState):
    kind = _NeverDetaches


class SelectsTheFirstRows(WithAnotherState):
    kind = _SelectsTheFirstRows


class ResetsNothing(WithAnotherState):
    kind = _ResetsNothing


class ResetsEverything(WithAnotherState):
    kind = _ResetsEverything


class MiscountsItsBytes(Plain):
    """The formula forgets the documents."""

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return super().state_bytes(batch, length, dtype) - 8 * batch * length


class KeepsTheWholeChunkAlive(Plain):
    """Keys and values are views of one projection three times as large."""

    def read(self, x: Tensor, context: Context) -> Past:
        past = super().read(x, context)
        k, v, _ = torch.cat([past.k, past.v, x.new_zeros(*x.shape[:2], 4 * x.shape[2])], 2).split(
            [x.shape[2], x.shape[2], 4 * x.shape[2]], 2
        )
        return dataclasses.replace(past, k=k, v=v)


class MixesTheBatch(Plain):
    """Outputs contain a mean over the batch."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        y = super().mix(x, new, past, visible)
        return y + 0.1 * y.mean(0, keepdim=True)


class IgnoresDocuments(Plain):
    """Attention crosses documents."""

    def read(self, x: Tensor, context: Context) -> Past:
        return super().read(x, dataclasses.replace(context, documents=None))


class CrossesDocumentsAtBorders(Plain):
    """Documents are told apart inside a chunk only."""

    def visible(self, new: Past, past: Past) -> Tensor:
        border = past.k.shape[1] - new.k.shape[1]
        blind = past.documents[:, :border] * 0 + new.documents[:, :1]
        return super().visible(new, dataclasses.replace(past, documents=torch.cat([blind, new.documents], 1)))


class SeesPadding(Plain):
    """Padding is read like any token."""

    def read(self, x: Tensor, context: Context) -> Past:
        return super().read(x, dataclasses.replace(context, padding=None))


class CountsPadding(Plain):
    """Distances are places in the buffer."""

    def distances(self, new: Past, past: Past) -> Tensor:
        q_time, k_time = new.k.shape[1], past.k.shape[1]
        index = torch.arange(k_time, device=new.k.device)
        return index[k_time - q_time :, None] - index


class IsNaNWhereNothingIsVisible(Plain):
    """The softmax of a row that sees nothing is 0 / 0."""

    def weigh(self, scores: Tensor, visible: Tensor) -> Tensor:
        return scores.masked_fill(~visible, -torch.inf).softmax(-1)


@dataclass(frozen=True)
class _WithOrWithoutDocuments(Past):
    told: bool = False


class WantsTheSameFactsInEveryChunk(Plain):
    """Documents that come late cannot be joined to none."""

    def read(self, x: Tensor, context: Context) -> Past:
        return _WithOrWithoutDocuments(**vars(super().read(x, context)), told=context.documents is not None)

    def join(self, old: Past, new: Past) -> Past:
        assert isinstance(old, _WithOrWithoutDocuments)
        assert isinstance(new, _WithOrWithoutDocuments)
        if old.told != new.told:
            raise TypeError("expected Tensor as element 0 in argument 0, but got NoneType")
        return _WithOrWithoutDocuments(**vars(super().join(old, new)), told=new.told)


class ReadsData(Plain):
    """A shape depends on what the tokens are."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        y = super().mix(x, new, past, visible)
        return y.nan_to_num() if bool(x.isnan().any()) else y


class DependsOnTheLength(Plain):
    """Scores are scaled by the logarithm of the call's length."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        return super().mix(x * math.log(1 + past.k.shape[1]), new, past, visible)


class IsNotDeterministic(Plain):
    """The output carries noise of the size of rounding."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        y = super().mix(x, new, past, visible)
        return y * (1 + 1e-6 * torch.rand_like(y, dtype=torch.float32).to(y.dtype))


class DropsWithoutTheSeed(Plain):
    """Dropout has its own source of randomness."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        with torch.random.fork_rng():
            torch.manual_seed(int.from_bytes(os.urandom(4), "big"))
            return super().forward(x, context, state)


class DropsNothing(Plain):
    """Dropout is configured and not applied."""

    def __init__(self, shape: LayerShape, position: PositionEncoding) -> None:
        super().__init__(shape, position)
        self.dropout = nn.Dropout(0.0)


class DiffersInEvaluation(Plain):
    """Evaluation takes another path."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        return super().mix(x, new, past, visible) * (1.0 if self.training else 1.01)


class HasAnIdleParameter(Plain):
    """A parameter takes part in nothing."""

    def __init__(self, shape: LayerShape, position: PositionEncoding) -> None:
        super().__init__(shape, position)
        self.gate = nn.Parameter(torch.zeros(shape.n_heads))


class IsNaNInBfloat16(Plain):
    """Something overflows in half precision."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        y = super().mix(x, new, past, visible)
        return y * torch.nan if self.q.weight.dtype == torch.bfloat16 else y


class FailsUnderAutocast(Plain):
    """Operands of different precision meet under autocast."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        y = super().mix(x, new, past, visible)
        return y.masked_scatter(torch.zeros_like(y, dtype=torch.bool), x)


class ForgetsToSubtractTheMaximum(Plain):
    """exp overflows."""

    def weigh(self, scores: Tensor, visible: Tensor) -> Tensor:
        weights = scores.exp() * visible
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)


class TurnsInHalfPrecision(Plain):
    """Positions are turned into angles in the precision of the activations."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        return super().mix(x, new, past, visible) * (2 + new.positions.to(x.dtype)[:, :, None].cos())


class TurnsTooFast(Plain):
    """Far out, float32 no longer tells one position's angle from the next."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        angles = 1234.567 * new.positions.to(torch.promote_types(x.dtype, torch.float32))
        return super().mix(x, new, past, visible) * (2 + angles[:, :, None].cos()).to(x.dtype)


class HasAWrongGradient(Plain):
    """A hand-written backward is off by a factor."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        y = super().mix(x, new, past, visible)
        return 2 * y - y.detach()


class DiffersWhenCompiled(Plain):
    """The compiled path is another one."""

    def mix(self, x: Tensor, new: Past, past: Past, visible: Tensor) -> Tensor:
        return super().mix(x, new, past, visible) * (1.1 if torch.compiler.is_compiling() else 1.0)


class AccumulatesInHalfPrecision(Linear):
    """Sums are kept in the precision of the activations."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        output = super().forward(x, context, state)
        assert output.state is not None
        return AttentionOutput(output.y, output.state.map(lambda t: t.to(x.dtype) if t.is_floating_point() else t))


class TwoWayThatReadsPadding(TwoWay):
    """Laws that do not need a state hold an encoder, too."""

    def visible(self, new: Past, past: Past) -> Tensor:
        return new.documents[:, :, None] == past.documents[:, None]
