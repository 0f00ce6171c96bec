"""Next-token prediction.

    L = mean over supervised positions t of  -log softmax(logits_t)[target_t]

The mean is over all supervised positions of the batch, so an example with more of them weighs more; without any it
is 0.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from lcbench.attention.precision import wide
from lcbench.dataset.base import Batch
from lcbench.model.base import ModelOutput
from lcbench.objective.base import Objective, Step


def next_token_loss(output: ModelOutput, batch: Batch) -> Tensor:
    """Mean cross-entropy at the supervised positions, in nats."""
    logits = wide(output.logits[batch.supervised])  # [supervised, vocabulary]
    targets = batch.targets[batch.supervised]
    # a piece of a stream may have nothing to learn from: its mean is 0, not 0 / 0
    return cross_entropy(logits, targets, reduction="sum") / max(1, len(targets))


class NextToken(Objective):
    """Cross-entropy, in nats, at the positions that the task supervises."""

    def __call__(self, output: ModelOutput, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"next_token": next_token_loss(output, batch), **output.losses}
