"""Next-token prediction.

    L = mean over supervised positions t of  -log softmax(logits_t)[target_t]

The mean is over all supervised positions of the batch, so an example with more of them weighs more.
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
        logits = output.logits[batch.supervised]  # [supervised, vocabulary]
        return {"next_token": cross_entropy(logits.float(), batch.targets[batch.supervised]), **output.losses}
