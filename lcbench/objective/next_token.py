"""Next-token prediction.

    L = mean over supervised positions t of  -log softmax(logits_t)[target_t]

The mean is over all supervised positions of the batch, so an example with more of them weighs more; without any it
is 0. Where the logits would be many, they are made in slices, and made again in the backward pass: never all at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from lcbench.attention.precision import wide
from lcbench.dataset.base import Batch
from lcbench.model.base import MOST_LOGITS, ModelOutput
from lcbench.objective.base import Objective, Step


def next_token_loss(output: ModelOutput, batch: Batch) -> Tensor:
    """Mean cross-entropy at the supervised positions, in nats."""
    targets = batch.targets[batch.supervised]
    # a piece of a stream may have nothing to learn from: its mean is 0, not 0 / 0
    count = max(1, len(targets))
    if batch.tokens.numel() * output.vocabulary_size <= MOST_LOGITS:
        logits = wide(output.logits[batch.supervised])  # [supervised, vocabulary]
        return cross_entropy(logits, targets, reduction="sum") / count
    hidden = output.hidden[batch.supervised]  # [supervised, d_model]

    def total(start: int, stop: int) -> Tensor:
        return cross_entropy(wide(output.unembed(hidden[start:stop])), targets[start:stop], reduction="sum")

    size = max(1, MOST_LOGITS // output.vocabulary_size)
    slices = [(start, start + size) for start in range(0, len(targets), size)] or [(0, 0)]
    losses = [checkpoint(total, *ends, use_reentrant=False, preserve_rng_state=False) for ends in slices]
    return torch.stack(losses).sum() / count


class NextToken(Objective):
    """Cross-entropy, in nats, at the positions that the task supervises."""

    def __call__(self, output: ModelOutput, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"next_token": next_token_loss(output, batch), **output.losses}
