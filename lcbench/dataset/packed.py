"""Examples that share rare words, packed into one batch.

Zhong, Lei, Chen, "Training Language Models with Memory Augmentation" (TRIME), 2022, arXiv 2205.12674: a memory of
other examples is worth something only if it holds something alike. A batch begins with a random example; then, again
and again, the best one that is still unused among the 20 nearest (BM25) to the last one is appended.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lcbench.dataset.base import Batch
from lcbench.dataset.bm25 import counts, nearest
from lcbench.dataset.synthetic import Sampler, Synthetic, generator
from lcbench.errors import ConfigurationError
from lcbench.units import Length


class Packed(Synthetic):
    """Training batches from a fixed set of examples, each packed with examples alike.

    Every example comes once an epoch. Where none of the nearest is unused, a random unused one is appended. What is
    packed first has the most to choose from, so the batches of an epoch are delivered in a random order; all of it is
    a function of seed and epoch. The fact ``document`` of a row is the number of its example.

    Args:
        task: draws the examples.
        seed: the run's seed.
        batch_size: examples a batch.
        size: examples in the fixed set; a multiple of the batch size.
        nearest: how many neighbours of an example are considered.
        workers: see ``Synthetic``.

    Raises:
        ConfigurationError: for a size that is no multiple of the batch size, or no neighbours.
    """

    facts = ("document",)

    def __init__(
        self,
        task: Sampler,
        seed: int,
        batch_size: int,
        *,
        size: Length = 1024,
        nearest: int = 20,
        workers: int = 0,
    ) -> None:
        super().__init__(task, seed, batch_size, size=size, workers=workers)
        if size % batch_size:
            closest = max(1, round(size / batch_size)) * batch_size
            raise ConfigurationError(
                f"dataset.size={size} is no multiple of trainer.batch_size={batch_size}; the closest that works is "
                f"dataset.size={closest}."
            )
        if nearest < 1:
            raise ConfigurationError(f"dataset.nearest={nearest}: the closest that works is 1.")
        self.nearest = nearest
        self._neighbours: np.ndarray | None = None
        self._packed: tuple[int, np.ndarray] | None = None

    def batch(self, index: int) -> Batch:
        """The ``index``-th training batch, from 0."""
        batch = super().batch(index)
        batch.facts["document"] = torch.from_numpy(self.numbers(index))
        return batch

    def _epoch_order(self, epoch: int, size: int) -> np.ndarray:
        if self._packed is None or self._packed[0] != epoch:
            starts = super()._epoch_order(epoch, size)
            packed = np.fromiter(self._chains(starts.tolist()), np.int64, size).reshape(-1, self.batch_size)
            order = generator(self.seed, "order of the packed batches", epoch).permutation(len(packed))
            self._packed = epoch, packed[order].reshape(-1)
        return self._packed[1]

    def _chains(self, starts: list[int]) -> Iterator[int]:
        """The examples in the order in which they are packed; ``starts`` is a random order of all of them."""
        neighbours = self._near(len(starts))
        unused, fresh = set(starts), iter(starts)
        last = None
        for place in range(len(starts)):
            begins = last is None or place % self.batch_size == 0
            choices: list[int] = [] if begins else neighbours[last].tolist()
            last = next((example for example in choices if example in unused), None)
            if last is None:
                last = next(example for example in fresh if example in unused)
            unused.remove(last)
            yield last

    def _near(self, size: int) -> np.ndarray:
        """The nearest of every example, best first, ``[size, nearest]``."""
        if self._neighbours is None:
            examples = self._fixed_set(size)
            vocabulary = int(examples.tokens.max()) + 1
            found = nearest(counts(examples.tokens, examples.padding, vocabulary), self.nearest)
            self._neighbours = found.numpy()
        return self._neighbours
