"""Documents packed into rows of one length, each token with the number of its document: no padding, and nothing is
read across documents.

The documents of an epoch stand one after another in a random order and are cut into rows, each beginning with the last
target of the one before: every target is learned once an epoch, but for the first token of a document, which follows
nothing, and less than a row at the end of the epoch. With ``task.begin`` a token stands before every document, and in
place of the first input of every row, as it does in the windows of an evaluation.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from lcbench.dataset.base import Batch
from lcbench.dataset.documents import Arranged
from lcbench.dataset.synthetic import generator
from lcbench.errors import ConfigurationError


class Concatenated(Arranged):
    """Rows of ``task.length`` tokens, in another order every epoch; batch i is a function of i alone.

    Args:
        task: a task with documents, such as language_modelling.
        seed: the run's seed.
        batch_size: rows a batch.

    Raises:
        ConfigurationError: for a task without documents.
    """

    carries_state = False

    @property
    def reach(self) -> int:
        """See ``Dataset.reach``: nothing is carried."""
        return self.task.length

    def check(self, total: int) -> None:
        if total <= self.task.length:
            raise ConfigurationError(
                f"task.length={self.task.length} is more than all training text, {total} tokens; the closest that "
                f"works is task.length={total - 1}."
            )

    def batch(self, index: int) -> Batch:
        """The ``index``-th training batch, from 0."""
        length, rows = self.task.length, (self.reel.total - 1) // self.task.length
        found = []
        for number in range(index * self.batch_size, (index + 1) * self.batch_size):
            epoch, place = divmod(number, rows)
            found.append(self.reel.stretch(epoch, self._shuffled(epoch, place, rows) * length, length + 1))
        # rows of one document first: they are read without a mask
        found.sort(key=lambda row: bool((row[1][:-1] != row[1][0]).any()))
        ids, documents = (torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))  # [batch, length + 1]
        same = documents[:, 1:] == documents[:, :-1]
        inputs = ids[:, :-1]
        if self.task.begin is not None:
            inputs = inputs.clone()
            inputs[:, 0] = self.task.begin
        # a batch in which no row has a second document is read the faster way
        named = None if bool(same.all()) else documents[:, :-1]
        return Batch(inputs, ids[:, 1:], scored=same, supervised=same, documents=named)

    def _shuffled(self, epoch: int, place: int, rows: int) -> int:
        """Which row of the epoch is the ``place``-th to be read: ``(a place + b) mod rows``, a prime to ``rows``: each
        comes once, without a table of them."""
        draw = generator(self.seed, "order of the rows", epoch)
        a, b = (int(number) for number in draw.integers(rows, size=2))
        while math.gcd(a, rows) != 1:
            a += 1
        return (a * place + b) % rows
