"""A task's examples as streams: each is delivered in pieces, one piece a batch, and the model's state is carried on.

Row r of a batch goes on where row r of the batch before ended, until the examples of that row are read to their end;
then all rows begin new examples, with a fresh state. This is how Transformer-XL and its successors are trained: a
gradient never leaves its piece, and what a model remembers of earlier pieces it remembers in its state.
"""

from __future__ import annotations

from dataclasses import replace

from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.synthetic import Sampler, Synthetic
from lcbench.errors import ConfigurationError
from lcbench.units import Length


class Stream(Synthetic):
    """Training batches that are pieces of examples.

    Batch i is a function of i alone. All examples have as many pieces as the longest, so that rows begin together;
    what is beyond a shorter example's end is padding.

    Args:
        task: draws the examples.
        seed: the run's seed.
        batch_size: examples a batch.
        tokens: in a piece; the last piece of an example may be shorter.
        size: see ``Synthetic``.
        workers: see ``Synthetic``.
    """

    carries_state = True

    def __init__(
        self,
        task: Sampler,
        seed: int,
        batch_size: int,
        *,
        tokens: Length = 64,
        size: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__(task, seed, batch_size, size=size, workers=workers)
        if tokens < 1:
            raise ConfigurationError(f"dataset.tokens={tokens} is empty; the closest that works is 1.")
        self.tokens = tokens
        # the last token of an example is only ever predicted
        self.time = task.token_length(TRAIN) - 1
        self.pieces = -(-self.time // tokens)
        self._whole: tuple[int, Batch] | None = None

    @property
    def longest(self) -> int:
        return min(self.tokens, self.time)

    @property
    def reach(self) -> int:
        return self.time

    def batch(self, index: int) -> Batch:
        """The ``index``-th training batch, from 0: a piece of ``batch_size`` examples."""
        number, piece = divmod(index, self.pieces)
        if self._whole is None or self._whole[0] != number:
            self._whole = number, super().batch(number).padded_to(self.time)
        start = piece * self.tokens
        return replace(self._whole[1].times(start, start + self.tokens), continues=piece > 0)
