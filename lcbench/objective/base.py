"""The interface of an objective: what is optimised."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lcbench.dataset.base import Batch
from lcbench.model.base import ModelOutput


class Objective(ABC):
    """What is optimised.

    A subclass's constructor takes keyword-only arguments: those are its configuration.
    """

    @abstractmethod
    def __call__(self, output: ModelOutput, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, whose sum is optimised; the mechanisms' own ``output.losses`` are among them."""
