"""Passkey retrieval in symbols: find a number hidden in filler, and say it at the end.

After Mohtashami and Jaggi, "Landmark Attention: Random-Access Infinite Context Length for Transformers", NeurIPS 2023,
arXiv 2305.16300, section 4.2, in a vocabulary small enough to learn from scratch in minutes (``passkey_text`` has the
papers' own texts). The length by depth grid is that of Munkhdalai, Faruqui, Gopal, 2024, arXiv 2404.07143, table 3.

Filler, a fact that states a number twice, filler, the question, the answer::

    a b c d  key 4 0 7 same 4 0 7 end  a b c d e  ask  4 0 7

The filler is one unit of 12 tokens, repeated, cut anywhere; it begins anew after every fact. It holds no digit, so the
number's digits stand in the fact and nowhere else. With several keys, each fact names its key, and so does the
question::

    a b  key B 1 9 5 end  a b c d  key A 4 0 7 end  a  ask A  4 0 7

With several values, each key has that many facts, and the answer is all values of the asked key in the order in which
they stand. Numbers of one example differ. Only the answer's digits are scored, each predicted from what precedes it.

Teacher forcing: each digit is predicted after the right ones before it, by the highest score. A key counts as right
if all its digits are. Greedy generation reads the same prefix up to its first wrong digit, so it says the whole answer
right exactly where teacher forcing does: with one value, ``error`` is what generation would get.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lcbench.dataset.base import TRAIN, Batch
from lcbench.task.base import IN_DISTRIBUTION, Task, refuse
from lcbench.task.cell import Cell, parse_cell
from lcbench.task.draws import distinct, symbols
from lcbench.task.place import by_place
from lcbench.units import Length

UNIT = 12
LABELS = 16
ZERO = UNIT
KEY, SAME, END, ASK, FIRST_LABEL = range(ZERO + 10, ZERO + 15)
HAYSTACKS = ("unit", "noise")


class Passkey(Task):
    """Say the number that a key had, after any amount of filler.

    Evaluation sets are cells of a grid (``lcbench.task.cell``): ``in_distribution``; ``length_1k_depth_50``, the fact
    after 50 % of the filler of an example of 1000 tokens; ``length_1M``, the fact anywhere; ``depth_0``, lengths as in
    training; and each with another haystack in front: ``noise_length_1k_depth_0``, ``unit_depth_100``. With several
    values, ``depth`` is that of the first of them. Examples with a length in their name have exactly that many tokens.

    Metrics: ``error``, numbers with a wrong digit over all numbers asked; ``token_error``, wrong digits; with several
    values ``sequence_error``, examples with a wrong digit; ``error/depth_0_19`` and ``error/distance_64_127``, numbers
    by the depth of the (first) fact, and by the tokens between it and the question.

    Args:
        length: tokens of the longest training example, answer included.
        min_length: tokens of the shortest. None: half of ``length``, or what the facts need. Where a mechanism reads
            in segments, a range shows it different numbers of them.
        lengths: how they are spread between the two: ``uniform``, or ``log_uniform``, every doubling as often as
            another.
        same_length: training examples in a row that have one length. With as many as a batch holds, no batch has
            padding, and short ones cost little.
        digits: of a number; 0 may lead.
        keys: different keys; the question names one.
        values: numbers of each key, all to be answered.
        mentions: how often a fact states its number: 2 as in the papers' prompt, 1 as a needle.
        haystack: what the filler is: the ``unit`` again and again, or ``noise``, any token of the unit at each place.
        loss: trains on the ``answer`` alone, or on ``everything``: each next token.
    """

    def __init__(
        self,
        *,
        length: Length = 128,
        min_length: Length | None = None,
        lengths: Literal["uniform", "log_uniform"] = "uniform",
        same_length: int = 1,
        digits: int = 3,
        keys: int = 1,
        values: int = 1,
        mentions: int = 2,
        haystack: Literal["unit", "noise"] = "unit",
        loss: Literal["answer", "everything"] = "answer",
    ) -> None:
        for name, value, most in (("digits", digits, 9), ("keys", keys, LABELS), ("mentions", mentions, 2)):
            if not 1 <= value <= most:
                raise refuse(f"task.{name}", value, f"is not between 1 and {most}", min(most, max(1, value)))
        if not 1 <= keys * values <= 10**digits:
            reason = f"is not between 1 and the {10**digits // keys} numbers there are for each key"
            raise refuse("task.values", values, reason, min(10**digits // keys, max(1, values)))
        self.digits, self.keys, self.values, self.mentions = digits, keys, values, mentions
        self.haystack = haystack
        self.loss = loss
        self.named = int(keys > 1)  # tokens that name a key
        self.fact = 1 + self.named + mentions * (digits + 1)
        self.answer = values * digits
        # what is no filler
        self.fixed = keys * values * self.fact + 1 + self.named + self.answer
        self.length = length
        self._check_length("task.length", length)
        self.min_length = max(length // 2, self.fixed) if min_length is None else min_length
        self._check_length("task.min_length", self.min_length)
        if self.min_length > length:
            raise refuse("task.min_length", self.min_length, f"is above task.length={length}", length)
        if same_length < 1:
            raise refuse("task.same_length", same_length, "is no number of examples", 1)
        self.log_uniform, self.same_length = lengths == "log_uniform", same_length
        labels = (chr(ord("A") + label) for label in range(LABELS))
        self.vocabulary = (
            *(chr(ord("a") + symbol) for symbol in range(UNIT)),
            *(str(digit) for digit in range(10)),
            *("key", "same", "end", "ask"),
            *(labels if self.named else ()),
        )
        # Any number; with several facts, one of those that the example has shown.
        facts = keys * values
        if facts > 1:
            differing = 0.9 / (1 - 10.0**-digits)  # digits of two different numbers
            self.chance = {"error": 1 - 1 / facts, "token_error": (1 - 1 / facts) * differing}
        else:
            self.chance = {"error": 1 - 10.0**-digits, "token_error": 0.9}
        grid = (f"length_{times}x_depth_{depth}" for times in (2, 8) for depth in (0, 50, 100))
        self.evaluation_sets = (IN_DISTRIBUTION, *grid)

    def token_length(self, evaluation_set: str) -> int:
        return self._cell(evaluation_set).length or self.length

    def at(self, evaluation_set: str, length: int) -> str:
        cell = self._cell(evaluation_set)
        at = Cell(cell.base, length, cell.depth).name
        self.token_length(at)
        return at

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        cell = self._cell(evaluation_set)
        if cell.length is None:
            lengths = self._lengths(rng, n, self.same_length if evaluation_set == TRAIN else 1)
        else:
            lengths = np.full(n, cell.length)
        filler = lengths - self.fixed
        place, asked, label = self._facts(rng, filler, cell.depth)
        facts = place.shape[1]
        start = place + self.fact * np.arange(facts)  # [n, facts], where each begins
        numbers = distinct(rng, n, facts, 10**self.digits)
        powers = 10 ** np.arange(self.digits)[::-1]
        figures = (ZERO + numbers[:, :, None] // powers % 10).astype(np.uint8)  # [n, facts, digits]

        width = int(lengths.max())
        if (cell.base or self.haystack) == "noise":
            string = symbols(rng, (n, width), UNIT)
        else:
            string = _units(width, start + self.fact)
        flat = string.reshape(-1)
        row = width * np.arange(n)
        flat[(row[:, None] + start)[:, :, None] + np.arange(self.fact)] = self._stated(figures, label)
        question = lengths - self.answer - self.named - 1  # [n], where it stands
        flat[row + question] = ASK
        if self.named:
            flat[row + question + 1] = label[asked][:: self.values]
        flat[(row + lengths - self.answer)[:, None] + np.arange(self.answer)] = figures[asked].reshape(n, -1)

        # The model reads all but the last digit of an answer.
        time = np.arange(width - 1, dtype=np.min_scalar_type(width))
        last = lengths[:, None].astype(time.dtype) - 1  # [n, 1]
        padding = None
        if lengths.min() < width:
            within = time < last
            string[:, 1:] &= -within.view(np.uint8)
            padding = torch.from_numpy(~within)
            scored = torch.from_numpy(within & (time >= last - self.answer))
        else:
            scored = torch.from_numpy(time >= width - 1 - self.answer).expand(n, -1)
        supervised = scored
        if self.loss == "everything":
            supervised = torch.ones_like(scored) if padding is None else ~padding
        tokens = torch.from_numpy(string).long()
        first = np.arange(n), asked.argmax(1)
        depth = 100 * place[first] / np.maximum(filler, 1)
        return Batch(
            tokens=tokens[:, :-1],
            targets=tokens[:, 1:],
            scored=scored,
            supervised=supervised,
            padding=padding,
            facts={
                "length": torch.from_numpy(lengths),
                "depth": torch.from_numpy(depth.astype(np.float32)),
                "distance": torch.from_numpy(question - start[first] - self.fact),
            },
        )

    def _lengths(self, rng: np.random.Generator, n: int, same: int) -> np.ndarray:
        """Tokens of ``n`` examples, ``same`` of which in a row have one length: int64 ``[n]``."""
        draws = -(-n // same)
        if self.log_uniform:
            low, high = np.log([self.min_length, self.length + 1])
            drawn = np.exp(rng.uniform(low, high, draws)).astype(np.int64).clip(self.min_length, self.length)
        else:
            drawn = rng.integers(self.min_length, self.length, draws, endpoint=True)
        return np.repeat(drawn, same)[:n]

    def _facts(
        self, rng: np.random.Generator, filler: np.ndarray, depth: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The facts in the order in which they stand, ``[n, facts]`` each: tokens of filler before them, whether their
        key is asked for, and their label.

        Places are independent and uniform; ``depth`` fixes the first asked one's, and the other asked ones lie behind.
        """
        n, facts = len(filler), self.keys * self.values
        place = rng.integers(0, filler[:, None], (n, facts), endpoint=True)
        if depth is not None:
            fixed = (filler * depth + 50) // 100
            place[:, 0] = fixed
            if self.values > 1:
                room = (filler - fixed)[:, None]
                place[:, 1 : self.values] = fixed[:, None] + rng.integers(0, room, (n, self.values - 1), endpoint=True)
        if facts == 1:
            return place, np.ones((n, 1), np.bool_), np.full((n, 1), FIRST_LABEL, np.uint8)
        # Facts at the same place stand in random order.
        order = np.argsort(place + rng.random((n, facts)), axis=1)
        labels = FIRST_LABEL + distinct(rng, n, self.keys, LABELS).astype(np.uint8)
        label = np.take_along_axis(labels, order // self.values, 1)
        return np.take_along_axis(place, order, 1), order < self.values, label

    def _stated(self, figures: np.ndarray, label: np.ndarray) -> np.ndarray:
        """The tokens of facts with these digits ``[n, facts, digits]`` and labels: ``[n, facts, tokens]``."""
        stated = np.empty((*label.shape, self.fact), np.uint8)
        stated[..., 0] = KEY
        if self.named:
            stated[..., 1] = label
        begin = 1 + self.named
        for mention in range(self.mentions):
            stated[..., begin : begin + self.digits] = figures
            begin += self.digits + 1
            stated[..., begin - 1] = END if mention + 1 == self.mentions else SAME
        return stated

    def solve(self, tokens: Tensor) -> Tensor:
        time = torch.arange(tokens.shape[1], device=tokens.device)
        question = (tokens == ASK).long().argmax(1, keepdim=True)  # [batch, 1]
        opening = tokens == KEY
        if self.named:
            opening[:, :-1] &= tokens[:, 1:] == tokens.gather(1, question + 1)
        starts = opening.nonzero()[:, 1].view(len(tokens), self.values)  # row by row, in order
        step = (time - question - self.named).clamp(0, self.answer - 1)  # [batch, time], the digit to say
        source = starts.gather(1, step // self.digits) + 1 + self.named + step % self.digits
        return tokens.gather(1, source)

    def outcomes(self, batch: Batch, predictions: Tensor) -> dict[str, Tensor]:
        wrong = (predictions != batch.targets)[batch.scored].view(len(batch), self.values, self.digits)
        errors = wrong.any(2)  # [batch, values]
        depth, distance = (batch.facts[name][:, None].expand_as(errors) for name in ("depth", "distance"))
        counted = {"error": errors.flatten(), "token_error": wrong.flatten()}
        if self.values > 1:
            counted["sequence_error"] = errors.any(1)
        return counted | by_place(errors, depth, distance)

    def _cell(self, evaluation_set: str) -> Cell:
        if evaluation_set == TRAIN:
            return Cell("", None, None)
        cell = parse_cell(evaluation_set, self.length)
        if cell is None or cell.base not in ("", *HAYSTACKS):
            known = [
                IN_DISTRIBUTION,
                "length_2x",
                "depth_50",
                "length_1k_depth_50",
                "noise",
                "noise_length_1k_depth_50",
            ]
            raise self.unknown_set(evaluation_set, known)
        if cell.length is not None and cell.length < self.fixed:
            reason = f"is shorter than the {self._needs()} and would be cut"
            raise refuse("evaluation.sets", evaluation_set, reason, Cell(cell.base, self.fixed, cell.depth).name)
        return cell

    def _check_length(self, key: str, length: int) -> None:
        if length < self.fixed:
            raise refuse(key, length, f"is shorter than the {self._needs()} and would be cut", self.fixed)

    def _needs(self) -> str:
        facts = self.keys * self.values
        return f"{self.fixed} tokens of {facts} fact{'s' * (facts > 1)}, question and answer"


def _units(width: int, after: np.ndarray) -> np.ndarray:
    """Filler that begins anew at each place in ``after`` ``[n, facts]``, increasing: uint8 ``[n, width]``."""
    tiled = np.resize(np.arange(UNIT, dtype=np.uint8), width + UNIT)
    from_symbol = np.lib.stride_tricks.sliding_window_view(tiled, width)  # [UNIT + 1, width], from each symbol on
    time = np.arange(width, dtype=np.min_scalar_type(width))
    filler: np.ndarray = from_symbol[:1]
    for begin in after.T:
        new = from_symbol[-begin % UNIT]  # [n, width], whose symbol at ``begin`` is the first
        before = time < begin[:, None].astype(time.dtype)
        new ^= (new ^ filler) & -before.view(
            np.uint8
        )  # the old filler before, by bits: several times as fast as where
        filler = new
    return filler
