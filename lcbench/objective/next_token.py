"""Next-token prediction.

    L = mean over supervised positions t of  -log softmax(logits_t)[target_t]

The mean is over all supervised positions of the batch, so an example with more of them weighs more; without any it
is 0.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from lcbench.dataset.base import Batch
from lcbench.model.base import ModelOutput
from lcbench.objective.base import Objective


class NextToken(Objective):
    """Cross-entropy, in nats, at the positions that the task supervises."""

    def __call__(self, output: ModelOutput, batch: Batch) -> dict[str, Tensor]:
        logits = output.logits[batch.supervised].float()  # [supervised, vocabulary]
        targets = batch.targets[batch.supervised]
        # a piece of a stream may have nothing to learn from: its mean is 0, not 0 / 0
        loss = cross_entropy(logits, targets, reduction="sum") / max(1, len(targets))
        return {"next_token": loss, **output.losses}
