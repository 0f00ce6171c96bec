"""Next-token prediction plus a contrastive loss over hidden states, with the batch's other states as negatives.

InfoNCE: van den Oord, Li, Vinyals 2018, arXiv 1807.03748; several positives inside the logarithm as in TRIME, Zhong
et al. 2022, arXiv 2205.12674; projection head: SimCLR, Chen et al. 2020, arXiv 2002.05709; dropout as augmentation:
SimCSE, Gao et al. 2021, arXiv 2104.08821; both directions: CLIP, Radford et al. 2021, arXiv 2103.00020.

With z = u / |u| of a hidden state u (or of its projection), temperature tau, candidates C(i) and positives P(i),

    L = L_next_token + weight * mean over i of  -log( sum_{j in P(i)} e^{s_ij} / sum_{j in C(i)} e^{s_ij} )
    s_ij = z_i . z_j / tau

    positives   the states i                  C(i)                            P(i)
    target      of supervised positions       the others of the same reading  those with the same target
    dropout     of all positions              all of a second reading, with   those of the same context: the position
                                              other dropout                   itself, and where rows begin alike

``target`` asks for what a memory of keys needs: states before the same token close together. ``dropout`` needs no
labels: states stay what they are under noise and keep apart from others. A context is a row's tokens up to a position:
equal contexts are never each other's negatives. States without a positive are left out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lcbench.attention.precision import wide, without_autocast
from lcbench.dataset.base import Batch, Dataset
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model, ModelOutput
from lcbench.objective.base import Objective, Step
from lcbench.objective.geometry import geometry
from lcbench.objective.next_token import next_token_loss


class Contrastive(Objective):
    """Cross-entropy, in nats, plus ``weight`` times InfoNCE, in nats.

    Args:
        weight: of the contrastive loss.
        positives: which states belong together: target or dropout.
        temperature: tau.
        projection: width of a projection head, two layers with a ReLU between them, that is thrown away after
            training; None compares hidden states themselves.
        symmetric: mean of both directions, first reading to second and back; without effect where there is one
            reading, whose similarities are symmetric.
        samples: states compared in a batch, drawn at random where there are more; time and memory grow with its
            square.

    Raises:
        ConfigurationError: for a value outside its range.
    """

    def __init__(
        self,
        *,
        weight: float = 0.1,
        positives: Literal["target", "dropout"] = "target",
        temperature: float = 0.1,
        projection: int | None = None,
        symmetric: bool = True,
        samples: int = 512,
    ) -> None:
        if weight < 0:
            raise ConfigurationError(f"objective.weight={weight}: must not be negative; the closest is 0.")
        if not temperature > 0:
            raise ConfigurationError(f"objective.temperature={temperature}: must be positive; 0.1 is usual.")
        if projection is not None and projection < 1:
            raise ConfigurationError(f"objective.projection={projection} is no width; the closest is 1, or null.")
        if samples < 2:
            raise ConfigurationError(f"objective.samples={samples}: there is nothing to compare; the closest is 2.")
        self.weight, self.positives, self.temperature = weight, positives, temperature
        self.projection, self.symmetric, self.samples = projection, symmetric, samples

    def check(self, model: Model, dataset: Dataset) -> None:
        dropout = any(module.p > 0 for module in model.modules() if isinstance(module, nn.Dropout))
        if self.positives == "dropout" and not dropout:
            raise ConfigurationError(
                "objective.positives=dropout: without dropout both readings are the same; add model.dropout=0.1, or "
                "take objective.positives=target."
            )

    def head(self, model: Model) -> nn.Module | None:
        if self.projection is None:
            return None
        width = model.d_model
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.projection))

    def __call__(self, output: ModelOutput, batch: Batch, step: Step) -> dict[str, Tensor]:
        if self.positives == "target":
            chosen, labels = batch.supervised, batch.targets
        else:
            chosen = torch.ones_like(batch.supervised) if batch.padding is None else ~batch.padding
            labels = contexts(batch.tokens)
        places = chosen.nonzero()  # [states, 2]
        if len(places) > self.samples:
            places = places[torch.randperm(len(places))[: self.samples].to(places.device)]
        row, time = places.unbind(1)
        label = labels[row, time]
        first = self._compared(output.hidden[row, time], step.head)
        if self.positives == "target":
            contrast = info_nce(first, first, label, self.temperature, apart=True)
        else:
            second = self._compared(step.read_again().hidden[row, time], step.head)
            contrast = info_nce(first, second, label, self.temperature)
            if self.symmetric:
                contrast = (contrast + info_nce(second, first, label, self.temperature)) / 2
        return {
            "next_token": next_token_loss(output, batch),
            "contrastive": self.weight * contrast,
            **output.losses,
        }

    def _compared(self, states: Tensor, head: nn.Module | None) -> Tensor:
        return normalize(wide(states if head is None else head(states)), dim=-1)  # [states, width]

    def measures(self, output: ModelOutput, batch: Batch) -> dict[str, Tensor]:
        return geometry(output.hidden, batch.padding, "hidden")


def info_nce(z: Tensor, others: Tensor, label: Tensor, temperature: float, apart: bool = False) -> Tensor:
    """The mean over ``z`` of -log of the share of positives; 0 if none has a positive.

    Args:
        z: unit vectors, ``[states, width]``.
        others: the candidates, ``[states, width]``, in the same order.
        label: int64 ``[states]``; equal labels are positives.
        temperature: tau.
        apart: a state is no candidate of its own.
    """
    with without_autocast(z.device):
        s = z @ others.T / temperature  # [states, candidates]
        if apart:
            s = s.masked_fill(torch.eye(len(s), dtype=torch.bool, device=s.device), -torch.inf)
        alike = s.masked_fill(label[:, None] != label, -torch.inf)
        counted = ~alike.isinf().all(1)
        return (s[counted].logsumexp(1) - alike[counted].logsumexp(1)).sum() / counted.sum().clamp_min(1)


def contexts(tokens: Tensor) -> Tensor:
    """A number for each row's tokens up to each position, int64 ``[batch, time]``: equal for equal contexts, and
    different for others but for a chance of 2^-64 (splitmix64 of position and token, summed)."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    mixed = (place << 32) ^ (tokens + 1)
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        # the sign bit is shifted in: mask it off, as for unsigned integers
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return mixed.cumsum(1)
