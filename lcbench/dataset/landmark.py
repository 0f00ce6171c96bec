"""Landmarks inserted into a task's examples: one after every b tokens, for attention that retrieves blocks by them.

Mohtashami and Jaggi 2023, arXiv 2305.16300. Lengths and scores are those of the task: a landmark is no question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lcbench.dataset.base import Batch
from lcbench.dataset.insertion import Insertion
from lcbench.dataset.synthetic import Sampler, Synthetic
from lcbench.errors import ConfigurationError


class Named(Sampler, Protocol):
    """What this module needs of a task."""

    @property
    def vocabulary(self) -> Sequence[str]: ...


class Landmarks(Synthetic):
    """Batches of ``Synthetic`` with landmarks in them: the same examples.

    Args:
        task: draws the examples.
        seed: the run's seed.
        batch_size: examples a batch.
        block: b, tokens before each landmark; 50 in the paper.
        predicted: whether landmarks are part of the text, to be predicted like any token, as in the paper's training;
            by default no loss is spent on them.
        size: see ``Synthetic``.
        workers: see ``Synthetic``.

    Raises:
        ConfigurationError: for a block without tokens.
    """

    def __init__(
        self,
        task: Named,
        seed: int,
        batch_size: int,
        *,
        block: int = 50,
        predicted: bool = False,
        size: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__(task, seed, batch_size, size=size, workers=workers)
        if block < 1:
            raise ConfigurationError(f"dataset.block={block} holds nothing; the least is dataset.block=1.")
        self.insertion: Insertion = Insertion(block, len(task.vocabulary), predicted)

    def batch(self, index: int) -> Batch:
        """The ``index``-th training batch, from 0."""
        return self.insertion.insert(super().batch(index))
