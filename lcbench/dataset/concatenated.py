"""Documents packed into rows of one length, each token with the number of its document: no padding, and nothing is
read across documents.

The documents of an epoch stand one after another in a random order and are cut into rows, each beginning with the last
target of the one before: every target is learned once an epoch, but for the first token of a document, which follows
nothing, and less than a row at the end of the epoch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch

from lcbench.dataset.base import Batch
from lcbench.dataset.documents import Reel, text_task
from lcbench.dataset.insertion import Insertion
from lcbench.dataset.synthetic import Sampler, generator
from lcbench.errors import ConfigurationError


class Concatenated:
    """Rows of ``task.length`` tokens, in another order every epoch; batch i is a function of i alone.

    Args:
        task: a task with documents, such as language_modelling.
        seed: the run's seed.
        batch_size: rows a batch.

    Raises:
        ConfigurationError: for a task without documents.
    """

    carries_state = False
    insertion: Insertion | None = None
    facts: tuple[str, ...] = ()

    def __init__(self, task: Sampler, seed: int, batch_size: int) -> None:
        self.task = text_task(task, "concatenated")
        self.seed, self.batch_size = seed, batch_size

    @property
    def longest(self) -> int:
        return self.task.length

    @property
    def reach(self) -> int:
        return self.task.length

    @cached_property
    def _reel(self) -> Reel:
        reel = Reel(self.task, self.seed)
        if reel.total <= self.task.length:
            raise ConfigurationError(
                f"task.length={self.task.length} is more than all training text, {reel.total} tokens; the closest "
                f"that works is task.length={reel.total - 1}."
            )
        return reel

    def batch(self, index: int) -> Batch:
        """The ``index``-th training batch, from 0."""
        length, rows = self.task.length, (self._reel.total - 1) // self.task.length
        found = []
        for number in range(index * self.batch_size, (index + 1) * self.batch_size):
            epoch, place = divmod(number, rows)
            found.append(self._reel.stretch(epoch, self._shuffled(epoch, place, rows) * length, length + 1))
        ids, documents = (torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))  # [batch, length + 1]
        same = documents[:, 1:] == documents[:, :-1]
        # a batch in which no row has a second document is read the faster way
        named = None if bool(same.all()) else documents[:, :-1]
        return Batch(ids[:, :-1], ids[:, 1:], scored=same, supervised=same, documents=named)

    def loader(self, start: int = 0, stop: int | None = None) -> Iterable[Batch]:
        """Batches ``start`` to ``stop - 1``, or without end."""
        return map(self.batch, itertools.count(start) if stop is None else range(start, stop))

    def _shuffled(self, epoch: int, place: int, rows: int) -> int:
        """Which row of the epoch is the ``place``-th to be read: ``(a place + b) mod rows``, a prime to ``rows``: each
        comes once, without a table of them."""
        draw = generator(self.seed, "order of the rows", epoch)
        a, b = (int(number) for number in draw.integers(rows, size=2))
        while math.gcd(a, rows) != 1:
            a += 1
        return (a * place + b) % rows
