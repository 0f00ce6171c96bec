"""Multi-query associative recall (MQAR).

Arora, Eyuboglu, Timalsina, Johnson, Poli, Zou, Rudra, Ré, "Zoology: Measuring and Improving Recall in Efficient
Language Models", 2023, arXiv 2312.04927.

K pairs of a key and its value, then each key once more, at a place of its own::

    k1 v1 k2 v2 ... kK vK  0 0 k2 0 0 0 k1 0 ...      the target at the second k2 is v2

Keys are different from each other, and so are values. Behind the pairs lie S = (T - 2K)/2 slots of two tokens. K
different slots are drawn one after another, slot n = 1..S with probability proportional to n^(a-1); the i-th drawn
receives key i in its first token. The value is not written after the key. Places left over hold 0, or random ids.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lcbench.dataset.base import TRAIN, Batch
from lcbench.lengths import parse_length
from lcbench.task.base import IN_DISTRIBUTION, Task, join_length, refuse, refuse_length, split_length
from lcbench.task.draws import distinct
from lcbench.units import Length

_PAIRS = re.compile(r"pairs_(?P<pairs>\d+)_length_(?P<length>\d+[kM]?)")


class MQAR(Task):
    """Answer every key with its value.

    Evaluation sets: ``in_distribution``; ``length_4x`` or ``length_256``, the length with the number of pairs in
    proportion, as in the paper's grid; ``pairs_16_length_256``, any number of pairs at any length.

    Metrics: ``error``, wrong answers over all queries; ``sequence_error``, examples with a wrong answer.

    Args:
        length: tokens T, even.
        pairs: keys K with their values; 4 K <= T.
        vocabulary_size: ids; 0 is blank, the lower half are keys, the upper half values. 8192 in the paper.
        skew: a; small gaps are likelier the smaller it is, and all equally likely at 1.
        filler: what lies between the queries: ``blank``, as in the paper's figure, or ``random``, uniform over all
            ids as in its library; random filler may repeat a key or value of the example.
    """

    def __init__(
        self,
        *,
        length: Length = 64,
        pairs: int = 4,
        vocabulary_size: int = 256,
        skew: float = 0.01,
        filler: Literal["blank", "random"] = "blank",
    ) -> None:
        if vocabulary_size < 4:
            raise refuse("task.vocabulary_size", vocabulary_size, "leaves no key beside the blank", 4)
        self.vocabulary_size = vocabulary_size
        self.keys = vocabulary_size // 2 - 1
        self.values = vocabulary_size - vocabulary_size // 2
        self.skew = skew
        self.filler = filler
        self._check(TRAIN, length, pairs)
        self.length = length
        self.pairs = pairs
        keys = (f"k{key}" for key in range(1, self.keys + 1))
        values = (f"v{value}" for value in range(1, self.values + 1))
        self.vocabulary = ("_", *keys, *values)
        # Among the values that the example has shown.
        self.chance = {"error": 1 - 1 / pairs, "sequence_error": 1 - float(pairs) ** -pairs}
        self.evaluation_sets = (IN_DISTRIBUTION, "length_2x")

    def token_length(self, evaluation_set: str) -> int:
        return self._sizes(evaluation_set)[0]

    def at(self, evaluation_set: str, length: int) -> str:
        at = join_length(IN_DISTRIBUTION, length)
        if match := _PAIRS.fullmatch(evaluation_set):
            at = f"pairs_{match['pairs']}_length_{length}"
        else:
            self.token_length(evaluation_set)
        self.token_length(at)
        return at

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        length, pairs = self._sizes(evaluation_set)
        small = np.min_scalar_type(self.vocabulary_size)
        keys = (1 + distinct(rng, n, pairs, self.keys)).astype(small)  # [n, pairs]
        values = (1 + self.keys + distinct(rng, n, pairs, self.values)).astype(small)
        if self.filler == "random":
            tokens = rng.integers(0, self.vocabulary_size, (n, length), small)
        else:
            tokens = np.zeros((n, length), small)
        tokens[:, 0 : 2 * pairs : 2] = keys
        tokens[:, 1 : 2 * pairs : 2] = values
        place = 2 * pairs + 2 * self._slots(rng, n, (length - 2 * pairs) // 2, pairs)  # [n, pairs]
        place += np.arange(n)[:, None] * length
        tokens.reshape(-1)[place] = keys
        targets = np.zeros((n, length), np.int64)
        targets.reshape(-1)[place] = values
        scored = np.zeros((n, length), np.bool_)
        scored.reshape(-1)[place] = True
        where = torch.from_numpy(scored)
        return Batch(torch.from_numpy(tokens).long(), torch.from_numpy(targets), where, where)

    def _slots(self, rng: np.random.Generator, n: int, slots: int, pairs: int) -> np.ndarray:
        """The first ``pairs`` slots in a draw without replacement, in order of drawing: int64 ``[n, pairs]``.

        With an exponential clock of rate n^(a-1) in each slot, the slots in the order in which their clocks ring are
        such a draw. The number of the slot takes the lowest bits of the time, which leaves it 2^-30 precise at least.
        """
        numbers = np.arange(slots, dtype=np.uint64)
        scale = (numbers + np.uint64(1)).astype(np.float64) ** (1 - self.skew)
        times = rng.standard_exponential((n, slots))
        times *= scale
        mask = np.uint64(2 ** (slots - 1).bit_length() - 1)
        clocks = times.view(np.uint64)  # positive floats are ordered as their bits are
        clocks &= ~mask
        clocks |= numbers
        if pairs < slots:
            clocks.partition(pairs - 1, axis=1)
        return (np.sort(clocks[:, :pairs], axis=1) & mask).astype(np.int64)

    def solve(self, tokens: Tensor) -> Tensor:
        # A key's first occurrence is its definition, and its value comes next.
        time = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        first = tokens.new_full((tokens.shape[0], self.vocabulary_size), tokens.shape[1])
        first.scatter_reduce_(1, tokens, time, "amin")  # [batch, vocabulary]
        value = (first.gather(1, tokens) + 1).clamp(max=tokens.shape[1] - 1)
        return tokens.gather(1, value)

    def _sizes(self, evaluation_set: str) -> tuple[int, int]:
        """Length and pairs of a set."""
        if evaluation_set in (TRAIN, IN_DISTRIBUTION):
            return self.length, self.pairs
        name, length = split_length(evaluation_set, self.length)
        if match := _PAIRS.fullmatch(evaluation_set):
            length, pairs = parse_length(match["length"]), int(match["pairs"])
        elif length is not None and name == IN_DISTRIBUTION:
            pairs = max(1, length * self.pairs // self.length)
        else:
            known = [IN_DISTRIBUTION, "length_2x", "length_4x", f"pairs_{2 * self.pairs}_length_{2 * self.length}"]
            raise self.unknown_set(evaluation_set, known)
        self._check(evaluation_set, length, pairs)
        return length, pairs

    def _check(self, evaluation_set: str, length: int, pairs: int) -> None:
        where = "" if evaluation_set == TRAIN else f" (in evaluation set {evaluation_set})"
        if pairs < 1:
            raise refuse("task.pairs", pairs, f"leaves nothing to recall{where}", 1)
        if length % 2:
            raise refuse_length(evaluation_set, length, "is not even", length + 1)
        if pairs > self.keys:
            reason = f"has no {pairs} different keys{where}"
            raise refuse("task.vocabulary_size", self.vocabulary_size, reason, 2 * (pairs + 1))
        if 4 * pairs > length:
            reason = f"do not fit a length of {length}, since a pair takes 4 tokens{where}"
            raise refuse("task.pairs", pairs, reason, max(1, length // 4))
