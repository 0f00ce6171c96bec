"""The layer under test, and the few operations that every check is written in: feed, differentiate, compare."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lcbench.attention.base import Attention, Context, State
from lcbench.conformance import situations
from lcbench.errors import ConfigurationError

#: what an oracle is: a literal definition of one document without padding, float64 on the CPU. Inputs
#: ``[time, d_model]``, parameters by name, positions ``[time]`` and landmarks (bool ``[time]``) give outputs
#: ``[time, d_model]``, or those and the tensors of the final state by path (see ``leaves``), without a batch axis.
Oracle = Callable[[Tensor, dict[str, Tensor], Tensor, Tensor], Tensor | tuple[Tensor, Mapping[str, Tensor]]]

#: rows of most inputs: one padded on the left, one on the right, one whole
ROWS = 3

#: violations that rounding explains, in units of the root mean square of what is compared
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-5, torch.float16: 5e-2, torch.bfloat16: 2e-1}


class NotApplicableError(Exception):
    """The law says nothing of this layer; the message says why."""


class ViolatedError(Exception):
    """The law does not hold, and no number says by how much."""


@dataclass(frozen=True)
class Finding:
    """What a check that found no violation has to say: what was looked at, and, where the law is a number, what was
    measured. A ``measured`` above ``tolerance`` is a violation after all."""

    detail: str
    measured: float | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class _ForeignState(State):
    """A state that no layer has made."""


@dataclass(frozen=True)
class Subject:
    """A layer under test.

    Args:
        make: makes the layer.
        device: where it runs.
        dtype: of weights and activations, wherever a check does not choose its own.
        length: tokens in the longest input.
        seed: of weights and inputs.
        oracle: see ``Oracle``.
        oracle_together: the same of reading both ways.
        degenerate: makes the mechanism where it must equal another layer, and that layer, with the same weights.
        compile: backend of torch.compile, or None.
    """

    make: Callable[[], Attention]
    device: torch.device
    dtype: torch.dtype
    length: int
    seed: int
    oracle: Oracle | None
    oracle_together: Oracle | None
    degenerate: Callable[[], tuple[Attention, Attention]] | None
    compile: str | None

    def fresh(self, dtype: torch.dtype | None = None, number: int = 0) -> Attention:
        """A layer in evaluation mode; the same weights for the same ``number``."""
        torch.manual_seed(self.seed + number)
        # A copy: `make` may hand out one and the same layer, which stays as it is.
        return self.prepared(copy.deepcopy(self.make()), dtype, number)

    def prepared(self, layer: Attention, dtype: torch.dtype | None = None, number: int = 0) -> Attention:
        """``layer`` with noise on every parameter, because a zero (a gate's, a table's) would hide what follows it."""
        generator = self.generator(number)
        with torch.no_grad():
            for parameter in layer.parameters():
                noise = torch.randn(parameter.shape, generator=generator) / math.sqrt(layer.shape.d_model)
                parameter.add_(noise.to(parameter))
        return layer.to(self.device, dtype or self.dtype).eval()

    @cached_property
    def layer(self) -> Attention:
        """The layer that most checks share; none of them changes it."""
        return self.fresh()

    def generator(self, number: int = 0) -> torch.Generator:
        """Random numbers that are the same on every device."""
        return torch.Generator().manual_seed(1000 * self.seed + number)

    def inputs(self, batch: int, length: int, number: int = 0) -> Tensor:
        """Standard normal ``[batch, length, d_model]``."""
        shape = (batch, length, self.layer.shape.d_model)
        return torch.randn(shape, generator=self.generator(number)).to(self.device, self.dtype)

    def on_device(self, context: Context) -> Context:
        return context.map(lambda tensor: tensor.to(self.device))

    def whole(self, batch: int, length: int, start: int = 0) -> Context:
        """Rows of one document each, from position ``start``."""
        return self.on_device(situations.whole(batch, length, start))

    @cached_property
    def situations(self) -> dict[str, Context]:
        """Every kind of context, ``ROWS`` rows of ``length`` tokens."""
        packed = situations.packed(ROWS, self.length, self.generator())
        padding = torch.zeros(ROWS, self.length, dtype=torch.bool)
        padding[1:, -3:] = True
        made = {
            "whole": situations.whole(ROWS, self.length),
            "packed": packed,
            "packed and padded": dataclasses.replace(packed, padding=padding),
            "padded": situations.padded(ROWS, self.length),
            "ragged": situations.ragged(ROWS, self.length, self.generator()),
            "jumping": situations.jumping(ROWS, self.length, self.generator()),
        }
        return {name: self.on_device(context) for name, context in made.items()}

    @cached_property
    def probed(self) -> list[int]:
        """Places where tokens are changed: all of them, or 64 of a long input."""
        if self.length <= 65:
            return list(range(1, self.length))
        chosen = torch.randperm(self.length - 2, generator=self.generator())[:63] + 1
        return [*sorted(chosen.tolist()), self.length - 1]

    @cached_property
    def cuttings(self) -> dict[str, list[int]]:
        """Ways to cut an input into chunks, as the places of the cuts."""
        length, generator = self.length, self.generator()
        few = {
            f"{n + 1} random cuts": sorted((torch.randperm(length - 1, generator=generator)[: n + 1] + 1).tolist())
            for n in (0, 2, 6)
        }
        singles = (
            [*range(1, length)] if length <= 64 else sorted({t for p in self.probed[::8] for t in range(p, p + 8)})
        )
        return few | {"first token alone": [1], "one token at a time": [t for t in singles if t < length]}

    @cached_property
    def causal(self) -> bool:
        """False for a mechanism that reads both ways: it returns no state and refuses one with a clear error."""
        x, context = self.inputs(1, 4), self.whole(1, 4)
        with torch.no_grad():
            if self.layer(x, context).state is not None:
                return True
            try:
                self.layer(x, context, _ForeignState())
            except ConfigurationError:
                return False
        return True

    @property
    def chunkings(self) -> dict[str, list[int]]:
        """``cuttings``, and none at all; only the latter for a mechanism without causal state."""
        return {"whole": []} | (self.cuttings if self.causal else {})

    def require_causal(self) -> None:
        """For laws of mechanisms that carry a state."""
        if not self.causal:
            raise NotApplicableError("It has no causal state: it returns none and refuses one.")

    def require_together(self) -> None:
        """For laws of layers that read both ways where they are told to."""
        if not self.layer.reads_together:
            raise NotApplicableError("It reads backwards only.")
        if not self.layer.position.reads_ahead:
            raise NotApplicableError("Its position encoding reads backwards only.")

    def tolerance(self, factor: float = 1.0, dtype: torch.dtype | None = None) -> float:
        return factor * TOLERANCE[dtype or self.dtype]


def piece(context: Context, start: int, stop: int) -> Context:
    """Tokens ``start`` to ``stop`` of ``context``."""
    return context.map(lambda tensor: tensor[:, start:stop])


def feed(
    layer: Attention, x: Tensor, context: Context, cuts: Sequence[int] = (), state: State | None = None
) -> tuple[Tensor, State | None]:
    """Feed ``x`` ``[batch, time, d_model]`` in chunks that end at ``cuts``: all outputs, and the last state."""
    outputs = []
    for start, stop in pairwise([0, *cuts, x.shape[1]]):
        output = layer(x[:, start:stop], piece(context, start, stop), state)
        state = output.state
        outputs.append(output.y)
    return torch.cat(outputs, 1), state


def state_after(
    layer: Attention, x: Tensor, context: Context, cuts: Sequence[int] = (), state: State | None = None
) -> State:
    """The state after feeding ``x``; its absence is a violation."""
    state = feed(layer, x, context, cuts, state)[1]
    if not isinstance(state, State):
        raise ViolatedError(
            f"It returned {state!r} as its state, and did not refuse a state with a ConfigurationError."
        )
    return state


def differentiate(
    layer: Attention, x: Tensor, context: Context, cuts: Sequence[int] = (), auxiliary: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and the gradients of a random projection of the outputs of valid tokens: of ``x``, then of
    the parameters.

    With ``auxiliary`` the layer's own losses are added, and the encoding's input embedding comes first, as in a
    network.
    """
    x = x.detach().clone().requires_grad_()
    if auxiliary:
        output = layer(layer.position.embed(x, context.positions), context)
        y, losses = output.y, list(output.losses.values())
    else:
        (y, _), losses = feed(layer, x, context, cuts), []
    loss = (y * projection(y))[situations.valid(context)].sum() + sum(losses)
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, [x, *parameters], allow_unused=True, materialize_grads=True)
    return y.detach(), list(gradients)


def projection(y: Tensor) -> Tensor:
    """Random weights of the shape of outputs ``y``: what gradients are taken of is their product's sum."""
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)


def difference(actual: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    """The largest absolute difference, in units of the largest root mean square among ``expected``; infinite if a
    number is not finite, or if integers differ at all.

    Tensors that belong together (all gradients) are compared in one scale: some are zero but for rounding, e.g. that
    of a bias of all keys.
    """
    actual = [actual] if isinstance(actual, Tensor) else actual
    expected = [expected] if isinstance(expected, Tensor) else expected
    scale = max((t.detach().double().square().mean().sqrt().item() for t in expected if t.numel()), default=0.0)
    worst = 0.0
    for one, other in zip(actual, expected, strict=True):
        if one.shape != other.shape:
            raise ViolatedError(f"Shapes differ: {list(one.shape)} and {list(other.shape)}.")
        if not one.is_floating_point():
            worst = worst if torch.equal(one, other.to(one.device)) else math.inf
        elif one.numel():
            gap = (one.detach().double() - other.detach().double().to(one.device)).abs()
            worst = max(worst, math.inf if not bool(gap.isfinite().all()) else gap.max().item())
    return worst / scale if scale > 0 and math.isfinite(scale) else worst


def leaves(value: Any, path: str = "state") -> dict[str, Any]:
    """Everything a state holds, by path: ``state.cache.k``, ``state.layers.0.z``."""
    if isinstance(value, State):
        items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))  # type: ignore[arg-type]
    elif isinstance(value, tuple):
        items = ((str(n), item) for n, item in enumerate(value))
    else:
        return {path: value}
    return {name: leaf for key, item in items for name, leaf in leaves(item, f"{path}.{key}").items()}


def tensors(state: State | None) -> dict[str, Tensor]:
    """The tensors of a state, by path."""
    return {path: leaf for path, leaf in leaves(state).items() if isinstance(leaf, Tensor)}


def state_difference(actual: State | None, expected: State | None) -> float:
    """The largest difference between two states, each tensor in its own scale; other values must be equal."""
    ours, theirs = leaves(actual), leaves(expected)
    if ours.keys() != theirs.keys():
        raise ViolatedError(f"States hold different things: {', '.join(sorted(ours.keys() ^ theirs.keys()))}.")
    worst = 0.0
    for path, one in ours.items():
        other = theirs[path]
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if one.shape != other.shape or one.dtype != other.dtype:
                kinds = [f"{list(t.shape)} {t.dtype}" for t in (one, other)]
                raise ViolatedError(f"{path} is {kinds[0]} in one state and {kinds[1]} in the other.")
            worst = max(worst, difference(one, other))
        elif type(one) is not type(other) or one != other:
            raise ViolatedError(f"{path} is {one!r} in one state and {other!r} in the other.")
    return worst
