"""Consecutive segments of a document as rows of one batch, each to be read by itself.

Every example is cut into segments, and m consecutive ones are m rows of one batch. The network reads a row knowing
nothing of the others; the objective joins them: the long memory of TRIME (Zhong et al. 2022, arXiv 2205.12674).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.synthetic import Sampler, Synthetic
from lcbench.errors import ConfigurationError
from lcbench.units import Length


class Segments(Synthetic):
    """Training batches whose rows are segments of examples, those of one example one after another.

    Facts of a row: ``document``, the number of its example, and ``segment``, its place in it, from 0. Batch i is a
    function of i alone. Where examples have more than m segments, the next m of the same examples are the next batch.
    What is beyond an example's end is padding.

    Args:
        task: draws the examples.
        seed: the run's seed.
        batch_size: rows a batch; a multiple of ``segments``.
        tokens: in a segment.
        segments: m, rows of one example in a batch, which divides the segments of an example; None: all of them.
        size: see ``Synthetic``.
        workers: see ``Synthetic``.

    Raises:
        ConfigurationError: for numbers that do not divide.
    """

    facts = ("document", "segment")

    def __init__(
        self,
        task: Sampler,
        seed: int,
        batch_size: int,
        *,
        tokens: Length = 64,
        segments: int | None = None,
        size: int | None = None,
        workers: int = 0,
    ) -> None:
        if tokens < 1:
            raise ConfigurationError(f"dataset.tokens={tokens} is empty; the closest that works is 1.")
        # the last token of an example is only ever predicted
        time = task.token_length(TRAIN) - 1
        pieces = -(-time // tokens)
        together = pieces if segments is None else segments
        if together < 1 or pieces % together:
            divisors = [n for n in range(1, pieces + 1) if pieces % n == 0]
            closest = min(divisors, key=lambda n: abs(n - together))
            raise ConfigurationError(
                f"dataset.segments={segments} does not divide the {pieces} segments of an example; the closest that "
                f"works is {closest}."
            )
        if batch_size % together:
            closest = max(1, round(batch_size / together)) * together
            raise ConfigurationError(
                f"trainer.batch_size={batch_size} is no multiple of the {together} segments of an example in a "
                f"batch; the closest that works is {closest}."
            )
        super().__init__(task, seed, batch_size // together, size=size, workers=workers)
        self.tokens = min(tokens, time)
        self.pieces = pieces
        self.segments = together
        self._whole: tuple[int, Batch] | None = None

    @property
    def longest(self) -> int:
        return self.tokens

    def batch(self, index: int) -> Batch:
        """The ``index``-th training batch, from 0: ``segments`` rows of each of its examples."""
        number, group = divmod(index, self.pieces // self.segments)
        if self._whole is None or self._whole[0] != number:
            self._whole = number, super().batch(number).padded_to(self.pieces * self.tokens)
        first = group * self.segments

        def cut(tensor: Tensor) -> Tensor:
            if tensor.dim() < 2:
                return tensor.repeat_interleave(self.segments, 0)
            # [examples, time] to [examples, pieces, tokens] to [rows, tokens]
            parts = tensor.unflatten(1, (self.pieces, self.tokens))
            return parts[:, first : first + self.segments].flatten(0, 1)

        rows = self._whole[1].map(cut)
        documents = torch.from_numpy(self.numbers(number))
        place = torch.arange(first, first + self.segments)
        rows.facts["document"] = documents.repeat_interleave(self.segments)
        rows.facts["segment"] = place.repeat(len(documents))
        return rows
