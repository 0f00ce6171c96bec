"""Selective copying, with markers in place of the output.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv 2312.00752, section 4.1,
on the generator of the S4 repository (``copying.py``).

M data tokens at random places among L blanks, in their order, then M markers; the data tokens are to be predicted at
the markers. What was predicted is not fed back::

    . 3 . . 1 . 7 . # # #                 (answers 3 1 7)

As in that generator the alphabet of A ids holds the blank (0), the marker (A - 1) and A - 2 different data tokens.
With the data in the first M places instead, this is classical copying.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lcbench.dataset.base import TRAIN, Batch
from lcbench.task.base import IN_DISTRIBUTION, Task, join_length, refuse, refuse_length, split_length
from lcbench.task.draws import subset, symbols
from lcbench.units import Length

BLANK = 0


class SelectiveCopyMamba(Task):
    """Write down the data tokens in order, without the blanks, while reading markers.

    Evaluation sets differ in the number of blanks alone: ``in_distribution``; ``dense``, half as many; ``sparse``,
    twice as many; and ``length_4x`` or ``length_256``, as many as fill that length.

    Metrics: ``sequence_error``, examples with a wrong token, and ``error``, wrong tokens.

    Args:
        length: tokens of a training example, blanks L + 2 M; 4128 for the paper's 4096 blanks.
        content: data tokens M; 16 in the paper.
        alphabet: ids A, blank and marker included; 16 in the paper.
        placement: where the data tokens lie: ``random``, or ``first`` for classical copying.
    """

    headline = "sequence_error"
    evaluation_sets = (IN_DISTRIBUTION, "dense", "sparse")

    def __init__(
        self,
        *,
        length: Length = 64,
        content: int = 8,
        alphabet: int = 10,
        placement: Literal["random", "first"] = "random",
    ) -> None:
        if content < 1:
            raise refuse("task.content", content, "leaves nothing to copy", 1)
        if alphabet < 3:
            raise refuse("task.alphabet", alphabet, "leaves no data token beside blank and marker", 3)
        self.content = content
        self._check_length(TRAIN, length)
        self.length = length
        self.alphabet = alphabet
        self.placement = placement
        self.vocabulary = (".", *(str(symbol) for symbol in range(1, alphabet - 1)), "#")
        self.chance = {"error": 1 - 1 / (alphabet - 2), "sequence_error": 1 - float(alphabet - 2) ** -content}
        self.positions_needed = content + 2

    def token_length(self, evaluation_set: str) -> int:
        return self._blanks(evaluation_set) + 2 * self.content

    def at(self, evaluation_set: str, length: int) -> str:
        name, _ = split_length(evaluation_set, self.length)
        at = join_length(name, length)
        self.token_length(at)
        return at

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        places = self._blanks(evaluation_set) + self.content
        marker = self.alphabet - 1
        data = symbols(rng, (n, self.content), marker - 1).astype(np.min_scalar_type(marker)) + 1
        string = np.full((n, places + self.content), marker, data.dtype)
        string[:, :places] = BLANK
        if self.placement == "random":
            filled = np.zeros(string.shape, np.bool_)
            filled[:, :places] = subset(rng, n, places, self.content)
            string.reshape(-1)[np.flatnonzero(filled)] = data.reshape(-1)  # row by row, in order of place
        else:
            string[:, : self.content] = data
        targets = np.zeros(string.shape, np.int64)
        targets[:, places:] = data
        scored = (torch.arange(string.shape[1]) >= places).expand(n, -1)
        return Batch(torch.from_numpy(string).long(), torch.from_numpy(targets), scored, scored)

    def solve(self, tokens: Tensor) -> Tensor:
        marker = self.alphabet - 1
        first_marker = (tokens == marker).long().argmax(1, keepdim=True)  # [batch, 1]
        time = torch.arange(tokens.shape[1], device=tokens.device)
        # Stable: the places of the data first, in their order.
        places = ((tokens == BLANK) | (tokens == marker)).long().argsort(dim=1, stable=True)
        return tokens.gather(1, places.gather(1, (time - first_marker).clamp(min=0)))

    def _blanks(self, evaluation_set: str) -> int:
        blanks = self.length - 2 * self.content
        by_name = {TRAIN: blanks, IN_DISTRIBUTION: blanks, "dense": blanks // 2, "sparse": 2 * blanks}
        name, length = split_length(evaluation_set, self.length)
        if length is not None and name == IN_DISTRIBUTION:
            self._check_length(evaluation_set, length)
            return length - 2 * self.content
        if length is not None or name not in by_name:
            known = [IN_DISTRIBUTION, "dense", "sparse", "length_2x", "length_4x"]
            raise self.unknown_set(evaluation_set, known)
        return by_name[name]

    def _check_length(self, evaluation_set: str, length: int) -> None:
        if length < 2 * self.content:
            reason = f"cannot hold task.content={self.content} and as many markers"
            raise refuse_length(evaluation_set, length, reason, 2 * self.content)
