"""Documents arranged so that attention layers can read each other's: for cross-batch training.

Tworkowski et al., "Focused Transformer: Contrastive Training for Context Scaling", NeurIPS 2023, arXiv 2307.03170.
Every row of a batch is one document, previous contexts first, then the current one. In a layer with memory, a query
reads the ``positives`` contexts before its own in its row and, as distractors, one previous context of each of the
``negatives`` rows that follow (modulo the batch), all in one softmax. Rows are different documents, so a negative is
never the future of its reader.
"""

from __future__ import annotations

from dataclasses import replace

from lcbench.dataset.base import Batch
from lcbench.dataset.synthetic import Sampler, Synthetic
from lcbench.errors import ConfigurationError


class CrossBatch(Synthetic):
    """A task's examples, each a document in a row of its own, and what rows may read of each other.

    Args:
        task: draws the examples; those of one batch must have the same length.
        seed: the run's seed.
        batch_size: examples a batch.
        mixture: pairs of positives and negatives, each for an equal share of the rows, e.g. ``[[1, 3]]`` for all, or
            LongLLaMA's quarters ``[[0, 0], [1, 1], [2, 1], [3, 0]]``.
        negatives_from: batches before the first with negatives; many of them from the start make a model ignore its
            own past.
        size: see ``Synthetic``.
        workers: see ``Synthetic``.

    Raises:
        ConfigurationError: for pairs that are none, or a batch too small for them.
    """

    def __init__(
        self,
        task: Sampler,
        seed: int,
        batch_size: int,
        *,
        mixture: list[list[int]] = [[1, 3]],  # noqa: B006 the signature is the schema
        negatives_from: int = 0,
        size: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__(task, seed, batch_size, size=size, workers=workers)
        if not mixture or any(len(pair) != 2 or min(pair) < 0 for pair in mixture):
            raise ConfigurationError(
                f"dataset.mixture={mixture}: must be pairs of positives and negatives, none below 0, such as [[1, 3]]."
            )
        positives, negatives = max(mixture, key=sum)
        if batch_size < positives + negatives + 1:
            raise ConfigurationError(
                f"trainer.batch_size={batch_size} is too small for {positives} positives and {negatives} negatives; "
                f"the least is trainer.batch_size={positives + negatives + 1}."
            )
        self.mixture, self.negatives_from = mixture, negatives_from

    def batch(self, index: int) -> Batch:
        """The ``index``-th training batch, from 0."""
        batch = super().batch(index)
        if batch.padding is not None:
            raise ConfigurationError(
                "dataset=crossbatch: the task's examples differ in length, and a row that ends early has no current "
                "context; make them equal, such as task.min_length=128 task.length=128."
            )
        pairs = []
        for row in range(len(batch)):
            positives, negatives = self.mixture[row * len(self.mixture) // len(batch)]
            pairs.append((positives, negatives if index >= self.negatives_from else 0))
        return replace(batch, crossbatch=tuple(pairs))
