"""Flip-flop language modelling: remember one bit.

Liu, Ash, Goel, Krishnamurthy, Zhang, "Exposing Attention Glitches with Flip-Flop Language Modeling", NeurIPS 2023,
arXiv 2306.00946. Also the first task of the CoPE paper, arXiv 2405.18719.

A string of T tokens is T/2 pairs of an instruction and a bit. Write (``w``) sets the memory, ignore (``i``) carries
a bit that must not matter, read (``r``) is followed by the bit of the most recent write::

    w 0  i 1  w 1  i 0  r 1

FFL(p): the first instruction is ``w``, the last is ``r``, the others are independent: ``i`` with probability p,
``w`` and ``r`` with (1 - p)/2 each. Bits after ``w`` and ``i`` are fair coins. Only bits after ``r`` are determined,
so only they are scored: at the ``r`` token itself, where they are to be predicted.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lcbench.dataset.base import TRAIN, Batch
from lcbench.task.base import IN_DISTRIBUTION, Task, join_length, refuse, refuse_length, split_length
from lcbench.units import Length

WRITE, READ, IGNORE, ZERO, ONE = range(5)


class FlipFlop(Task):
    """Return the bit of the most recent write.

    Evaluation sets: ``in_distribution``; ``dense``, FFL(0.1); ``sparse``, FFL(0.98); each also at other lengths,
    e.g. ``sparse_length_4x``.

    Metrics: ``error``, wrong reads over all reads; ``final_read_error``, over last reads only; ``sequence_error``,
    strings with a wrong read; ``error/distance_4_7`` and the like, reads by their distance in pairs to the write
    they return (1, 2-3, 4-7, ...).

    Args:
        length: tokens of a string, even; 512 in the paper.
        p_ignore: probability of ``i`` in training. A list is a uniform mixture over strings, e.g. the paper's
            strongest remedy ``[0.1, 0.9, 0.98]``.
        loss: ``clean`` trains on the bits after reads only, ``noisy`` on every next token.
    """

    vocabulary = ("w", "r", "i", "0", "1")
    evaluation_sets = (IN_DISTRIBUTION, "sparse", "dense", "sparse_length_4x")

    def __init__(
        self,
        *,
        length: Length = 64,
        p_ignore: float | list[float] = 0.8,
        loss: Literal["clean", "noisy"] = "clean",
    ) -> None:
        self._check_length(TRAIN, length)
        mixture = tuple(p_ignore) if isinstance(p_ignore, (list, tuple)) else (p_ignore,)
        for p in mixture or (2.0,):
            if not 0 <= p <= 1:
                raise refuse("task.p_ignore", p_ignore, "is not a probability", 0.8)
        self.length = length
        self.loss = loss
        self.p_ignore = {TRAIN: mixture, IN_DISTRIBUTION: mixture, "dense": (0.1,), "sparse": (0.98,)}
        bins = {f"error/distance_{_bin_name(b)}": 0.5 for b in range(_bins(length))}
        # With k fair guesses a string is right with probability 2^-k, and the inner reads are binomial.
        right = [0.5 * (1 - (1 - p) / 4) ** (length // 2 - 2) for p in mixture]
        sequence_error = 1 - sum(right) / len(right)
        self.chance = {"error": 0.5, "final_read_error": 0.5, "sequence_error": sequence_error, **bins}

    @staticmethod
    def _check_length(evaluation_set: str, length: int) -> None:
        if length < 4 or length % 2:
            reason = "is not an even number of at least 4 tokens"
            raise refuse_length(evaluation_set, length, reason, max(4, length // 2 * 2))

    def token_length(self, evaluation_set: str) -> int:
        name, length = split_length(evaluation_set, self.length)
        if name not in self.p_ignore or (name == TRAIN and length is not None):
            known = [known for known in self.p_ignore if known != TRAIN]
            raise self.unknown_set(evaluation_set, [*known, *(join_length(name, 4 * self.length) for name in known)])
        if length is None:
            return self.length
        self._check_length(evaluation_set, length)
        return length

    def at(self, evaluation_set: str, length: int) -> str:
        name, _ = split_length(evaluation_set, self.length)
        at = join_length(name, length)
        self.token_length(at)
        return at

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        pairs = self.token_length(evaluation_set) // 2
        name, _ = split_length(evaluation_set, self.length)
        mixture = np.array(self.p_ignore[name])
        p_ignore = mixture if len(mixture) == 1 else mixture[rng.integers(0, len(mixture), n)]

        # One 32-bit word a pair: where it lies between two thresholds is the instruction (w, r or i), its lowest bit
        # the coin. Both are off by less than 2^-30.
        words = rng.integers(0, 2**32 - 1, (n, pairs), dtype=np.uint32, endpoint=True)
        bits = (words & 1).astype(np.uint8)
        p_write = (1 - p_ignore[:, None]) / 2  # [n or 1, 1]
        write = words < (p_write * 2**32).astype(np.uint32)  # [n, pairs]
        read = (words < (2 * p_write * (2**32 - 1)).astype(np.uint32)) & ~write
        write[:, 0], read[:, 0] = True, False
        write[:, -1], read[:, -1] = False, True

        # The number of a pair and its bit in one integer: the running maximum over writes is the latest write.
        latest = 2 * np.arange(pairs, dtype=np.min_scalar_type(2 * pairs)) + bits
        latest *= write
        np.maximum.accumulate(latest, axis=1, out=latest)
        bits ^= (bits ^ latest.astype(np.uint8)) & read

        strings = np.empty((n, pairs, 2), np.uint8)
        strings[:, :, 0] = IGNORE - np.uint8(IGNORE - WRITE) * write - np.uint8(IGNORE - READ) * read
        strings[:, :, 1] = ZERO + bits
        tokens = torch.from_numpy(strings.reshape(n, 2 * pairs)).long()
        scored = torch.zeros(n, 2 * pairs - 1, dtype=torch.bool)
        scored[:, ::2] = torch.from_numpy(read)
        supervised = scored if self.loss == "clean" else torch.ones_like(scored)
        return Batch(tokens[:, :-1], tokens[:, 1:], scored, supervised)

    def solve(self, tokens: Tensor) -> Tensor:
        time = torch.arange(tokens.shape[1], device=tokens.device)
        after_write = torch.zeros_like(tokens, dtype=torch.bool)
        after_write[:, 1:] = tokens[:, :-1] == WRITE
        latest = torch.where(after_write, time, 0).cummax(1).values  # [batch, time]
        return tokens.gather(1, latest)

    def outcomes(self, batch: Batch, predictions: Tensor) -> dict[str, Tensor]:
        outcomes = super().outcomes(batch, predictions)
        wrong = predictions != batch.targets
        outcomes["final_read_error"] = wrong[:, -1]
        time = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        written = torch.where(batch.tokens == WRITE, time, 0).cummax(1).values
        distance = torch.div(time - written, 2, rounding_mode="floor")[batch.scored]  # [reads], in pairs
        errors = outcomes["error"]
        for b in range(_bins(batch.tokens.shape[1] + 1)):
            inside = (distance >= 2**b) & (distance < 2 ** (b + 1))
            outcomes[f"error/distance_{_bin_name(b)}"] = errors[inside]
        return outcomes


def _bins(length: int) -> int:
    """Bins of distance: bin b holds 2^b .. 2^(b+1) - 1 pairs, the longest distance is length/2 - 1."""
    return (length // 2 - 1).bit_length()


def _bin_name(b: int) -> str:
    return "1" if b == 0 else f"{2**b}_{2 ** (b + 1) - 1}"
