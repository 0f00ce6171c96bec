"""The interface of an objective: what is optimised, and what a trained network's prediction is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lcbench.attention.base import Facts, State
from lcbench.dataset.base import Batch, Dataset
from lcbench.model.base import Model, ModelOutput


@dataclass(frozen=True)
class Step:
    """What a training step knows beside its batch.

    Args:
        progress: share of the run's updates that were made before, from 0 to 1.
        read_again: reads the batch once more, from the same state, with dropout of its own.
        head: what ``Objective.head`` made, or None.
    """

    progress: float
    read_again: Callable[[], ModelOutput]
    head: nn.Module | None = None


class Objective(ABC):
    """What is optimised.

    A subclass's constructor takes keyword-only arguments: those are its configuration. An objective holds nothing that
    training changes.
    """

    @abstractmethod
    def __call__(self, output: ModelOutput, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Named scalar losses, whose sum is optimised; the mechanisms' own ``output.losses`` are among them."""

    def predict(
        self, output: ModelOutput, tokens: Tensor, facts: Facts, memory: State | None = None
    ) -> tuple[Tensor, State | None]:
        """Scores of the next token at every position, ``[batch, time, vocabulary]``, up to a constant the logarithms
        of its probabilities; and what is carried to the next call.

        Here the logits, and nothing. An objective that changes the output distribution overrides this.

        Args:
            output: the network's, for ``tokens``.
            tokens: ``[batch, time]``.
            facts: what the network was told of them.
            memory: what the call before carried; None starts a sequence.
        """
        return output.logits, None

    def head(self, model: Model) -> nn.Module | None:
        """A module of the objective's own, freshly initialised, that is trained beside ``model`` and not evaluated."""
        return None

    def measures(self, output: ModelOutput, batch: Batch) -> dict[str, Tensor]:
        """Named numbers for the logs. Asked for only when a row of the log is written; draws no random numbers."""
        return {}

    def check(self, model: Model, dataset: Dataset) -> None:
        """Whether it can train this network on these batches.

        Raises:
            ConfigurationError: if not.
        """
        return
