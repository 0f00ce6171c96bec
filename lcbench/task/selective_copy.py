"""Selective copying, with the output fed back.

Golovneva, Wang, Weston, Sukhbaatar, "Contextual Position Encoding", 2024, arXiv 2405.18719, section 5. The task goes
back to Gu and Dao, "Mamba", arXiv 2312.00752; its own format is ``selective_copy_mamba``.

M content tokens and N blanks in random order, a separator, then the content tokens in the order they came in::

    D B B C F B F B SEP  D C F F          (content D C F F, blanks B)

The N blanks lie anywhere among the N + M places, each arrangement equally likely; content is uniform over the
symbols and may repeat. The M predictions made at SEP, y_1, ..., y_(M-1) are trained and scored, the random input is
not.

Counting back from any of these positions over separator, content and output, the answer is always the (M+1)-th
token: a position that counts only what is no blank solves the task whatever N is; one that counts tokens cannot.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lcbench.dataset.base import TRAIN, Batch
from lcbench.task.base import IN_DISTRIBUTION, Task, join_length, refuse, refuse_length, split_length
from lcbench.task.draws import subset, symbols
from lcbench.units import Length

BLANK, SEPARATOR, FIRST_SYMBOL = 0, 1, 2
#: most groups of output indices that errors are counted in
OUTPUT_GROUPS = 16


class SelectiveCopy(Task):
    """Write down the content tokens in order, without the blanks.

    Evaluation sets differ in the number of blanks alone: ``in_distribution``; ``dense``, half as many; ``sparse``,
    twice as many; and ``length_4x`` or ``length_256``, as many as fill that length.

    Metrics: ``sequence_error``, examples with a wrong token, and ``error``, wrong tokens (under teacher forcing);
    ``error/output_1`` and the like, wrong tokens by their index in the output, from 1, in at most 16 groups.

    Args:
        length: tokens of a training example, blanks N + content 2 M + separator; 769 in the paper.
        content: content tokens M; 256 in the paper.
        symbols: different content tokens.
    """

    headline = "sequence_error"
    evaluation_sets = (IN_DISTRIBUTION, "dense", "sparse")

    def __init__(self, *, length: Length = 49, content: int = 16, symbols: int = 8) -> None:
        if content < 1:
            raise refuse("task.content", content, "leaves nothing to copy", 1)
        if symbols < 1:
            raise refuse("task.symbols", symbols, "leaves nothing to copy", 1)
        self.content = content
        self._check_length(TRAIN, length)
        self.length = length
        self.symbols = symbols
        self.vocabulary = ("_", "|", *(str(symbol) for symbol in range(symbols)))
        by_index = dict.fromkeys(self._groups(), 1 - 1 / symbols)
        self.chance = {"error": 1 - 1 / symbols, "sequence_error": 1 - float(symbols) ** -content, **by_index}
        self.positions_needed = content + 2

    def token_length(self, evaluation_set: str) -> int:
        return self._blanks(evaluation_set) + 2 * self.content + 1

    def at(self, evaluation_set: str, length: int) -> str:
        name, _ = split_length(evaluation_set, self.length)
        at = join_length(name, length)
        self.token_length(at)
        return at

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        places = self._blanks(evaluation_set) + self.content
        content = symbols(rng, (n, self.content), self.symbols)
        content = content.astype(np.min_scalar_type(FIRST_SYMBOL + self.symbols)) + FIRST_SYMBOL
        string = np.zeros((n, places + 1 + self.content), content.dtype)
        filled = np.zeros(string.shape, np.bool_)
        filled[:, :places] = subset(rng, n, places, self.content)
        string.reshape(-1)[np.flatnonzero(filled)] = content.reshape(-1)  # row by row, in order of place
        string[:, places] = SEPARATOR
        string[:, places + 1 :] = content
        tokens = torch.from_numpy(string).long()
        scored = (torch.arange(places + self.content) >= places).expand(n, -1)
        return Batch(tokens[:, :-1], tokens[:, 1:], scored, scored)

    def solve(self, tokens: Tensor) -> Tensor:
        separator = (tokens == SEPARATOR).long().argmax(1, keepdim=True)  # [batch, 1]
        time = torch.arange(tokens.shape[1], device=tokens.device)
        is_content = (tokens >= FIRST_SYMBOL) & (time < separator)
        # Stable: the places of the content first, in their order.
        places = (~is_content).long().argsort(dim=1, stable=True)
        return tokens.gather(1, places.gather(1, (time - separator).clamp(min=0)))

    def outcomes(self, batch: Batch, predictions: Tensor) -> dict[str, Tensor]:
        outcomes = super().outcomes(batch, predictions)
        wrong = outcomes["error"].view(-1, self.content)  # [batch, content]
        return outcomes | {name: wrong[:, first:last].flatten() for name, (first, last) in self._groups().items()}

    def _groups(self) -> dict[str, tuple[int, int]]:
        """Groups of output indices of the same size, the last one perhaps smaller: first and end, from 0."""
        size = -(-self.content // OUTPUT_GROUPS)
        ends = [(first, min(first + size, self.content)) for first in range(0, self.content, size)]
        return {
            f"error/output_{first + 1}" + (f"_{end}" if end > first + 1 else ""): (first, end) for first, end in ends
        }

    def _blanks(self, evaluation_set: str) -> int:
        blanks = self.length - 2 * self.content - 1
        by_name = {TRAIN: blanks, IN_DISTRIBUTION: blanks, "dense": blanks // 2, "sparse": 2 * blanks}
        name, length = split_length(evaluation_set, self.length)
        if length is not None and name == IN_DISTRIBUTION:
            self._check_length(evaluation_set, length)
            return length - 2 * self.content - 1
        if length is not None or name not in by_name:
            known = [IN_DISTRIBUTION, "dense", "sparse", "length_2x", "length_4x"]
            raise self.unknown_set(evaluation_set, known)
        return by_name[name]

    def _check_length(self, evaluation_set: str, length: int) -> None:
        least = 2 * self.content + 1
        if length < least:
            reason = f"cannot hold task.content={self.content} twice and a separator"
            raise refuse_length(evaluation_set, length, reason, least)
