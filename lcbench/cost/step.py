"""What is measured: one layer of attention, or one network, reading a sequence of a given length.

- ``layer``: an attention layer with its projections, at the width and heads of the composed model. It reads random
  activations, ``[1, length, d_model]``.
- ``model``: the whole network. It reads random tokens, ``[1, length]``; its loss is the cross-entropy at every token.

``forward`` reads as an evaluation does: evaluation mode, no graph. ``training`` is the forward and the backward pass
of a training step, without the optimizer: gradients of the weights and, for a layer, of its input. One sequence, one
document, no padding, no state before; the losses of the mechanism's own are part of a training step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcbench.attention.base import Attention, Context, Facts
from lcbench.construction import construct, construct_model
from lcbench.errors import ConfigurationError
from lcbench.model.base import ModelOutput
from lcbench.position.base import LayerShape, PositionEncoding

Pass = Literal["forward", "training"]
PASSES: tuple[Pass, ...] = ("forward", "training")

Scope = Literal["layer", "model"]

#: tokens before a landmark where the mechanism does not say
BLOCK = 50


@dataclass(frozen=True)
class Work:
    """What is computed, and in which numbers; plain values, so that another process can be told.

    Args:
        scope: what is measured.
        attention: the config of the mechanism; None in a network without any.
        position: the config of the encoding.
        model: the config of the network.
        vocabulary: token ids of the network.
        precision: 32 or bf16-mixed, as a trainer's.
        device: where.
        threads: CPU threads; None for torch's choice.
        seed: of weights and inputs.
    """

    scope: Scope
    attention: dict[str, Any] | None
    position: dict[str, Any] | None
    model: dict[str, Any]
    vocabulary: int
    precision: str
    device: str
    threads: int | None
    seed: int

    @property
    def identity(self) -> str:
        """8 hex digits of everything that decides what is computed."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32

    @property
    def shape(self) -> LayerShape:
        """Of the measured layer: the only one, so that a mechanism that remembers in one layer remembers in it."""
        given = {name: self.model[name] for name in ("bias", "dropout") if name in self.model}
        return LayerShape(self.model["d_model"], self.model["n_heads"], **given)

    def make(self) -> nn.Module:
        """The layer or the network.

        Raises:
            ConfigurationError: if its parts do not fit together.
        """
        if self.scope == "model":
            parts = {"attention": self.attention, "position": self.position}
            return construct_model({"model": self.model, **parts}, self.vocabulary)
        assert self.attention is not None
        assert self.position is not None
        layer: Attention = construct(self.attention, self.shape, construct(self.position, self.shape))
        return layer

    def autocast(self) -> AbstractContextManager[object]:
        """The forward pass's number format."""
        enabled = self.precision == "bf16-mixed"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16) if enabled else nullcontext()


class Step:
    """One layer or network with what it reads, ready to run.

    Args:
        work: what is computed.
        length: tokens.
        device: where; the work's own, or ``cpu`` to count from shapes.

    Raises:
        ConfigurationError: for a length that the encoding has no places for.
    """

    def __init__(self, work: Work, length: int, device: str | None = None) -> None:
        self.work, self.length = work, length
        where = torch.device(device or work.device)
        with where:
            self.module = work.make()
        _check_places(self.module, length)
        landmarks = _landmarks(self.module, length, where)
        if work.scope == "model":
            self.x = torch.randint(work.vocabulary, (1, length), device=where)
            self._facts: Facts = Facts(landmarks=landmarks)
            self._gradient = None
        else:
            self.x = torch.randn(1, length, work.shape.d_model, device=where, requires_grad=True)
            self._facts = Context(positions=torch.arange(length, device=where)[None], landmarks=landmarks)
            self._gradient = torch.randn(1, length, work.shape.d_model, device=where)

    @property
    def tensors(self) -> Iterator[Tensor]:
        """What is there before a pass begins."""
        yield from (*self.module.parameters(), *self.module.buffers(), self.x)
        yield from () if self._gradient is None else (self._gradient,)
        yield from (value for value in vars(self._facts).values() if isinstance(value, Tensor))

    def run(self, name: Pass) -> None:
        """One pass."""
        self.forward() if name == "forward" else self.training()

    @torch.no_grad()
    def forward(self) -> None:
        """Read as an evaluation does."""
        self.module.eval()
        with self.work.autocast():
            output = self.module(self.x, self._facts)
            if isinstance(output, ModelOutput):
                _ = output.logits

    def training(self) -> None:
        """The forward and the backward pass of a training step."""
        self.module.train()
        self.module.zero_grad()
        self.x.grad = None
        with self.work.autocast():
            output = self.module(self.x, self._facts)
            losses = list(output.losses.values())
            if self._gradient is None:
                y = F.cross_entropy(output.logits.flatten(0, 1).float(), self.x.flatten())
                gradient = torch.ones_like(y)
            else:
                y, gradient = output.y, self._gradient.to(output.y.dtype)
        torch.autograd.backward([y, *losses], [gradient, *(torch.ones_like(loss) for loss in losses)])


def _check_places(module: nn.Module, length: int) -> None:
    for encoding in module.modules():
        if isinstance(encoding, PositionEncoding) and encoding.max_length is not None and encoding.max_length < length:
            raise ConfigurationError(
                f"position.max_length={encoding.max_length} has no places for {length:,} tokens; "
                f"the least is position.max_length={length}."
            )


def _landmarks(module: nn.Module, length: int, device: torch.device) -> Tensor | None:
    """``[1, length]``, True after every block, for a mechanism that reads landmarks; else None."""
    readers = [layer for layer in module.modules() if isinstance(layer, Attention) and layer.needs_landmarks]
    if not readers:
        return None
    block: int = getattr(readers[0], "block", BLOCK)
    return (torch.arange(length, device=device) % (block + 1) == block)[None]


def counted(work: Work, length: int, name: Pass) -> Callable[[], tuple[Callable[[], None], Iterator[Tensor]]]:
    """The pass as ``analytic.count`` takes it."""

    def make() -> tuple[Callable[[], None], Iterator[Tensor]]:
        step = Step(work, length, "cpu")
        return lambda: step.run(name), step.tensors

    return make
