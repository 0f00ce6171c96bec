"""The interface of a task: what is asked, and how an answer is scored."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lcbench.dataset.base import Batch
from lcbench.errors import ConfigurationError

#: the distribution that a model is trained on; every other name is an evaluation set
TRAIN = "train"


class Task(ABC):
    """What is asked and how it is scored.

    A subclass's constructor takes keyword-only arguments: those are its configuration.
    """

    #: the symbol of every token id, in order of id
    vocabulary: tuple[str, ...]
    #: longest training example, in tokens, answer included
    length: int
    #: the metric that results are ranked by
    headline: str = "error"
    #: what guessing among the plausible answers scores, per metric
    chance: dict[str, float]
    #: rows a table of contextual positions (CoPE's p_max) needs to hold an exact solution
    positions_needed: int = 1
    #: the evaluation sets a run is scored on unless told otherwise
    evaluation_sets: tuple[str, ...]

    @abstractmethod
    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        """Draw ``n`` examples of ``evaluation_set`` (or of ``TRAIN``), vectorised over examples."""

    @abstractmethod
    def solve(self, tokens: Tensor) -> Tensor:
        """The exact answers, from the model's input alone: int64 ``[batch, time]``, right wherever scored."""

    @abstractmethod
    def at(self, evaluation_set: str, length: int) -> str:
        """The name of ``evaluation_set`` with examples of ``length`` tokens.

        Raises:
            ConfigurationError: if the task has no such set.
        """

    @abstractmethod
    def token_length(self, evaluation_set: str) -> int:
        """Longest example of ``evaluation_set`` (or of ``TRAIN``), in tokens, answer included.

        Raises:
            ConfigurationError: if there is no such set; names the closest.
        """

    def outcomes(self, batch: Batch, predictions: Tensor) -> dict[str, Tensor]:
        """Per metric, one outcome for each thing it counts: bool (True is wrong) or float, flat ``[any]``.

        ``predictions``: int64 ``[batch, time]``. Here: ``error`` over scored positions and ``sequence_error`` over
        examples.
        """
        wrong = (predictions != batch.targets) & batch.scored
        return {"error": wrong[batch.scored], "sequence_error": wrong.any(1)}

    def unknown_set(self, name: str, known: Sequence[str]) -> ConfigurationError:
        """The error for an evaluation set that does not exist."""
        closest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        hint = f"; the closest is {closest[0]}" if closest else ""
        task = type(self).__name__
        return ConfigurationError(f"evaluation.sets: {task} has no set {name!r}{hint} (known: {', '.join(known)}).")
