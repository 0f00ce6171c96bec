"""How a model is fed: whole, or a few segments a call with its state handed on.

A model's outputs do not depend on it. What does is the gradient, where the state is cut off between calls, and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lcbench.attention.base import Facts
from lcbench.engine.settings import Trainer
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model, ModelOutput, ModelState

Pass = Callable[[Tensor, Facts, ModelState | None], ModelOutput]


@dataclass(frozen=True)
class Feeding:
    """How a sequence is cut into calls.

    Args:
        tokens: in a call; None: the whole sequence.
        detach: whether a call's gradient stops at its beginning.
        recompute: whether a call's activations are computed again in the backward pass instead of kept.
    """

    tokens: int | None = None
    detach: bool = False
    recompute: bool = False

    def __call__(self, read: Pass, tokens: Tensor, facts: Facts, state: ModelState | None = None) -> ModelOutput:
        """The outputs for ``tokens`` ``[batch, time]``; the losses of layers are their means over calls."""
        time = tokens.shape[1]
        size = min(self.tokens or time, time)
        if size == time and not self.recompute:
            return read(tokens, facts, state)
        outputs = []
        for start in range(0, time, size):
            piece = tokens[:, start : start + size]
            known = facts.map(lambda tensor, start=start: tensor[:, start : start + size])  # type: ignore[misc]
            output: ModelOutput = (
                checkpoint(read, piece, known, state, use_reentrant=False)
                if self.recompute and torch.is_grad_enabled()
                else read(piece, known, state)
            )
            state = output.state.detach() if self.detach else output.state
            outputs.append(output)
        return _joined(outputs)


def feeding_of(trainer: Trainer, model: Model) -> Feeding:
    """How a run's options feed its network in training.

    Raises:
        ConfigurationError: if they speak of segments and the network has none.
    """
    if trainer.bptt_segments == "all" and not trainer.recompute_segments:
        return Feeding()
    if model.segment is None:
        key = "recompute_segments=true" if trainer.recompute_segments else f"bptt_segments={trainer.bptt_segments}"
        raise ConfigurationError(
            f"trainer.{key}: the network has no segments to cut at; leave it at its default, or take an attention "
            "with segments such as attention=infini."
        )
    if trainer.bptt_segments == "all":
        return Feeding(model.segment, recompute=True)
    return Feeding(trainer.bptt_segments * model.segment, detach=True, recompute=trainer.recompute_segments)


def _joined(outputs: list[ModelOutput]) -> ModelOutput:
    losses: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for output in outputs for name in output.losses):
        losses[name] = torch.stack([output.losses[name] for output in outputs if name in output.losses]).mean()
    return ModelOutput(
        unembed=outputs[-1].unembed,
        vocabulary_size=outputs[-1].vocabulary_size,
        state=outputs[-1].state,
        hidden=torch.cat([output.hidden for output in outputs], 1),
        keys=torch.cat([output.keys for output in outputs], 1),
        losses=losses,
        measures=outputs[-1].measures,
    )
