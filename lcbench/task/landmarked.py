"""A task with landmarks in what the model reads: the same questions, answers and scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.insertion import Insertion
from lcbench.task.base import Task


class Landmarked(Task):
    """``task`` as ``insertion`` delivers it; names and lengths of evaluation sets are the task's own.

    Args:
        task: the task.
        insertion: where landmarks go.
    """

    def __init__(self, task: Task, insertion: Insertion) -> None:
        self.task = task
        self.insertion = insertion
        self.vocabulary = (*task.vocabulary, "<landmark>")
        self.length = self.token_length(TRAIN)
        self.headline = task.headline
        self.chance = task.chance
        self.positions_needed = task.positions_needed
        self.evaluation_sets = task.evaluation_sets

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        """See ``Task.sample``."""
        return self.insertion.insert(self.task.sample(rng, n, evaluation_set))

    def solve(self, tokens: Tensor) -> Tensor:
        """See ``Task.solve``; ``tokens`` with landmarks."""
        answers = self.task.solve(self.insertion.at_tokens(tokens))
        where = torch.arange(tokens.shape[1], device=tokens.device)[None]
        solved = torch.zeros_like(tokens)
        solved[:, self.insertion.at_questions(where)[0]] = answers
        return solved

    def at(self, evaluation_set: str, length: int) -> str:
        """See ``Task.at``; ``length`` counts no landmarks."""
        return self.task.at(evaluation_set, length)

    def token_length(self, evaluation_set: str) -> int:
        """See ``Task.token_length``; landmarks count."""
        return self.insertion.length(self.task.token_length(evaluation_set))

    def outcomes(self, batch: Batch, predictions: Tensor) -> dict[str, Tensor]:
        """See ``Task.outcomes``: those of the task without landmarks; a predicted landmark is a wrong token."""
        asked, said = self.insertion.remove(batch), self.insertion.at_questions(predictions)
        names = len(self.task.vocabulary)
        return self.task.outcomes(asked, torch.where(said < names, said, (asked.targets + 1) % names))
