"""Documents as streams: row r of a batch goes on where row r of the batch before ended, and the state is carried.

The documents of an epoch stand one after another in a random order and are cut into as many streams as a batch has
rows. Each token has the number of its document: at a document's start, what the state holds of the one before is
cleared. This is how Transformer-XL (Dai et al. 2019, arXiv 1901.02860) and its successors are trained on text; that
memories end with their document is as in Memorizing Transformers (Wu et al. 2022, arXiv 2203.08913).
"""

from __future__ import annotations

import numpy as np
import torch

from lcbench.dataset.base import Batch
from lcbench.dataset.documents import Arranged
from lcbench.errors import ConfigurationError


class Contiguous(Arranged):
    """Pieces of ``task.length`` tokens; batch i is a function of i alone.

    Every epoch begins with a fresh state, and may leave out less than a piece at the end of each stream.

    Args:
        task: a task with documents, such as language_modelling.
        seed: the run's seed.
        batch_size: streams.

    Raises:
        ConfigurationError: for a task without documents.
    """

    carries_state = True

    @property
    def reach(self) -> int:
        """See ``Dataset.reach``: a position is a token's place in its document."""
        return int(self.reel.lengths.max())

    def check(self, total: int) -> None:
        most = total // (self.task.length + 1)
        if self.batch_size > most:
            raise ConfigurationError(
                f"trainer.batch_size={self.batch_size}: the training text, {total} tokens, is too short for so many "
                f"streams of task.length={self.task.length}; the closest that works is "
                f"trainer.batch_size={max(1, most)}."
            )

    def batch(self, index: int) -> Batch:
        """The ``index``-th training batch, from 0."""
        length, stream = self.task.length, self.reel.total // self.batch_size
        epoch, piece = divmod(index, (stream - 1) // length)
        found = [self.reel.stretch(epoch, row * stream + piece * length, length + 1) for row in range(self.batch_size)]
        ids, documents = (torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))  # [batch, length + 1]
        same = documents[:, 1:] == documents[:, :-1]
        return Batch(
            tokens=ids[:, :-1],
            targets=ids[:, 1:],
            scored=same,
            supervised=same,
            documents=documents[:, :-1],
            continues=piece > 0,
        )
