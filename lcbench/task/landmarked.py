"""A task with landmarks in what the model reads: the same questions, answers and scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lcbench.corpus.documents import Watcher
from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.insertion import Insertion
from lcbench.dataset.synthetic import Rows
from lcbench.task.base import Spoken, Task
from lcbench.task.spelling import Spelling
from lcbench.task.tally import Tally
from lcbench.tokenizer.base import Names


class Landmarked(Task):
    """``task`` as ``insertion`` delivers it; names and lengths of evaluation sets are the task's own.

    Args:
        task: the task.
        insertion: where landmarks go.
    """

    def __init__(self, task: Task, insertion: Insertion) -> None:
        self.task = task
        self.insertion: Insertion = insertion
        self.vocabulary = Names(len(task.vocabulary) + 1, lambda: (*task.vocabulary, "<landmark>"))
        self.overlapping = task.overlapping
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

    def rows(self, evaluation_set: str, examples: int, seed: int) -> Rows:
        """See ``Task.rows``."""
        return _Rows(self.task.rows(evaluation_set, examples, seed), self.insertion)

    def example(self, evaluation_set: str, number: int, seed: int) -> Batch:
        """See ``Task.example``."""
        return self.insertion.insert(self.task.example(evaluation_set, number, seed))

    def streams(self, evaluation_set: str) -> bool:
        """See ``Task.streams``."""
        return self.task.streams(evaluation_set)

    def judge(self, scores: Tensor, targets: Tensor) -> Tensor:
        """See ``Task.judge``."""
        return self.task.judge(scores, targets)

    def tally(self, evaluation_set: str) -> Tally:
        """See ``Task.tally``: that of the task without landmarks; what was said by itself has none."""
        tally = self.task.tally(evaluation_set)
        if self.task.spoken(evaluation_set):
            return tally
        return _Tally(tally, self.insertion, len(self.task.vocabulary))

    def spoken(self, evaluation_set: str) -> Spoken | None:
        """See ``Task.spoken``."""
        return self.task.spoken(evaluation_set)

    @property
    def spelling(self) -> Spelling:
        """See ``Task.spelling``: a landmark cannot be written."""
        return self.task.spelling

    def prepare(self, watcher: Watcher) -> dict[str, str | int]:
        """See ``Task.prepare``."""
        return self.task.prepare(watcher)

    def outcomes(self, batch: Batch, predictions: Tensor) -> dict[str, Tensor]:
        """See ``Task.outcomes``: those of the task without landmarks; a predicted landmark is a wrong token."""
        return self.task.outcomes(*_without(batch, predictions, self.insertion, len(self.task.vocabulary)))


def _without(batch: Batch, values: Tensor, insertion: Insertion, names: int) -> tuple[Batch, Tensor]:
    """Both as the task knows them: predicted tokens are among its ``names``, and where a landmark was predicted it is
    a wrong one. Values that are no tokens, such as losses, stay."""
    asked, said = insertion.remove(batch), insertion.at_questions(values)
    if not said.is_floating_point():
        said = torch.where(said < names, said, (asked.targets + 1) % names)
    return asked, said


class _Rows:
    """The rows of a task with landmarks in them."""

    def __init__(self, rows: Rows, insertion: Insertion) -> None:
        self.rows, self.insertion = rows, insertion
        self.counts = rows.counts

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def positions(self) -> int:
        return self.insertion.length(self.rows.positions)

    def batches(self, batch_size: int) -> Iterator[tuple[int, int]]:
        return self.rows.batches(batch_size)

    def take(self, start: int, stop: int) -> Batch:
        return self.insertion.insert(self.rows.take(start, stop))


class _Tally:
    """A task's tally, told of batches without landmarks."""

    def __init__(self, tally: Tally, insertion: Insertion, names: int) -> None:
        self.tally, self.insertion, self.names = tally, insertion, names

    def add(self, batch: Batch, values: Tensor) -> None:
        self.tally.add(*_without(batch, values, self.insertion, self.names))

    def record(self) -> dict[str, float]:
        return self.tally.record()

    def details(self) -> list[dict[str, Any]]:
        return self.tally.details()
