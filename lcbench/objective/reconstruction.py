"""Next-token prediction plus the reconstruction losses of layers that compress what they remember.

Rae, Potapenko, Jayakumar, Lillicrap, "Compressive Transformers for Long-Range Sequence Modelling", 2019,
arXiv 1911.05507.

    L = L_next_token + weight * sum over layers and names of L_name

A layer's reconstruction loss reaches nothing but its compressor: the layer detaches everything else. So that clipping
keeps the two apart as well, a compressor's parameters name a group of their own (``own_group`` with ``clip``), whose
gradient has a norm of its own: one norm over everything would let the reconstruction loss scale the network's update.
"""

from __future__ import annotations

from torch import Tensor

from lcbench.attention.base import Attention
from lcbench.dataset.base import Batch, Dataset
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model, ModelOutput
from lcbench.objective.base import Objective, Step
from lcbench.objective.next_token import next_token_loss


class Reconstruction(Objective):
    """Cross-entropy, in nats, plus the layers' own losses times ``weight``.

    Args:
        weight: of the layers' losses; 0 leaves a compressor as it was initialised.

    Raises:
        ConfigurationError: for a negative weight.
    """

    def __init__(self, *, weight: float = 1.0) -> None:
        if weight < 0:
            raise ConfigurationError(f"objective.weight={weight}: must not be negative; the closest is 0.")
        self.weight = weight

    def __call__(self, output: ModelOutput, batch: Batch, step: Step) -> dict[str, Tensor]:
        own = {name: self.weight * loss for name, loss in output.losses.items()}
        return {"next_token": next_token_loss(output, batch), **own}

    def check(self, model: Model, dataset: Dataset) -> None:
        if not any(module.own_losses for module in model.modules() if isinstance(module, Attention)):
            raise ConfigurationError(
                "objective=reconstruction: no layer of the network has a loss of its own; take an attention that "
                "compresses its memory, or objective=next_token."
            )
