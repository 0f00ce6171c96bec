"""Counting: what is a variable worth, after how many increments since it was last set?

Golovneva, Wang, Weston, Sukhbaatar, "Contextual Position Encoding: Learning to Count What's Important", 2024, arXiv
2405.18719, section 5.3, with the grammar of the generator released with it (facebookresearch/RAM, projects/cope).

A program of statements, each drawn with weights set : pass : increment = 1 : 50 : 7, then a print::

    pass; a = 0 ; pass; a ++; pass; a ++; print a       (answer 2)

A set assigns 0 to a variable chosen uniformly. An increment adds 1 to a variable chosen uniformly among those set so
far; if there is none, or the chosen one is at 10 already, the whole statement is drawn again, operation included.
The number of statements is uniform. A program that sets no variable is drawn again; the printed variable is chosen
uniformly among those set. Only the answer is trained and scored, at the variable after ``print``.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcbench.dataset.base import TRAIN, Batch
from lcbench.task.base import IN_DISTRIBUTION, Task, join_length, refuse, refuse_length, split_length
from lcbench.units import Length

PAD, START, ASSIGN, END, PASS, INCREMENT, PRINT, ZERO = range(8)
LIMIT = 10
FIRST_VARIABLE = ZERO + LIMIT + 1
WEIGHTS = (1, 50, 7)  # set, pass, increment
MORE_PASS = (1, 100, 7)
#: sets and increments drawn at once
EVENTS = 32


class Counting(Task):
    """Print a variable of a program that sets and increments it between many no-ops.

    Evaluation sets: ``in_distribution``; ``length_2x``, with M to 2 M statements where training has at most M, and
    ``length_4x``, with 2 M to 4 M; ``length_1k``, with the most statements that fit 1000 tokens, down to half of
    them; ``more_pass``, with weights 1 : 100 : 7, which stretches distances alone, and ``more_pass_length_2x``.

    Programs longer than ``length`` tokens lose their left end in training and in_distribution, as in the paper; the
    other sets are never cut.

    Metrics: ``error`` (``sequence_error`` is the same: an example has one answer); ``error/statements_4_7`` and the
    like, by the number of statements that were drawn (1, 2-3, 4-7, ...).

    Args:
        length: tokens of the longest training example; 512 in the paper.
        variables: different variables; 1, 3 and 5 in the paper.
        min_statements: fewest statements of a program, print not counted.
        max_statements: most statements; 512 in the paper, where it cuts one program in seven. None: half of
            ``length``; from a length of 100 on none of these is cut (64 statements: 118 tokens at the very most).
    """

    def __init__(
        self,
        *,
        length: Length = 128,
        variables: int = 1,
        min_statements: int = 3,
        max_statements: int | None = None,
    ) -> None:
        if not 1 <= variables <= 8:
            raise refuse("task.variables", variables, "is not between 1 and 8", min(8, max(1, variables)))
        if min_statements < 1:
            raise refuse("task.min_statements", min_statements, "leaves nothing to set a variable", 1)
        self.max_statements = length // 2 if max_statements is None else max_statements
        if self.max_statements < min_statements:
            if max_statements is None:
                raise refuse_length(TRAIN, length, "leaves no room for task.min_statements", 2 * min_statements)
            raise refuse("task.max_statements", max_statements, "is below task.min_statements", min_statements)
        if length < 8:
            raise refuse_length(TRAIN, length, "cannot hold a set, a print and an answer", 8)
        self.length = length
        self.variables = variables
        self.min_statements = min_statements
        letters = "abcdefgh"[:variables]
        numbers = (str(value) for value in range(LIMIT + 1))
        self.vocabulary = ("<pad>", "<start>", "=", ";", "pass;", "++;", "print", *numbers, *letters)
        self.chance = {"error": 1 - 1 / (LIMIT + 1), "sequence_error": 1 - 1 / (LIMIT + 1)}
        self.positions_needed = LIMIT + 2
        self.evaluation_sets = (IN_DISTRIBUTION, "length_2x", "length_4x", "more_pass")

    def token_length(self, evaluation_set: str) -> int:
        _, most, weights = self._statements(evaluation_set)
        longest = _longest(most, weights)
        return min(self.length, longest) if evaluation_set in (TRAIN, IN_DISTRIBUTION) else longest

    def at(self, evaluation_set: str, length: int) -> str:
        name, _ = split_length(evaluation_set, self.length)
        at = join_length(name, length)
        self.token_length(at)
        return at

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        fewest, most, weights = self._statements(evaluation_set)
        passes, statements = _beginnings(rng, n, fewest, most, weights)
        # The longest programs first, so that those still running are always the first so many.
        row = np.argsort(-statements, kind="stable")  # the example that a program becomes
        passes, statements = passes[row], statements[row]
        events = _draw_events(rng, self.variables, weights, passes, statements)

        # The printed variable, its last set, and the increments since. [n]
        printed = rng.integers(0, math.lcm(*range(1, self.variables + 1)), n) % events.is_first.sum(0)
        on_printed = events.variable == printed.astype(np.uint8)  # [events, n]
        number = np.arange(1, len(on_printed) + 1, dtype=np.min_scalar_type(len(on_printed)))[:, None]
        last_set = (number * (on_printed & events.is_set)).max(0)
        answer = np.add.reduce(on_printed & events.is_increment & (number > last_set), 0, dtype=np.uint8)

        # The model reads all but the answer, cut on the left to what the set allows. [n]
        extra = events.is_increment + 3 * events.is_set.view(np.uint8)
        tokens = statements + np.add.reduce(extra, 0, dtype=np.int32) + 2
        cut = (tokens - (self.token_length(evaluation_set) - 1)).clip(0)
        kept = tokens - cut
        margin, width = int(cut.max()), int(kept.max())
        padding = np.arange(width, dtype=np.int32) >= kept[np.argsort(row), None]  # [n, width]
        text = np.empty((n, margin + width), np.uint8)
        text[:, margin:] = ~padding * np.uint8(PASS)
        flat = text.reshape(-1)
        left = (margin - cut + row * (margin + width)).astype(np.int32)  # where a program begins

        # Programs name their variables in the order of their first set; the letters are dealt at random.
        letters = rng.permuted(np.tile(np.arange(self.variables, dtype=np.uint8), (n, 1)), axis=1) + FIRST_VARIABLE
        events.place += left

        def located(chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
            """Where these events begin, and the letters of their variables."""
            index = np.flatnonzero(chosen)
            return events.place.reshape(-1)[index], letters[index % n, events.variable.reshape(-1)[index]]

        place, letter = located(events.is_increment)
        flat[place] = letter
        flat[place + 1] = INCREMENT
        place, letter = located(events.is_set)
        flat[place] = letter
        flat[place + 1] = ASSIGN
        flat[place + 2] = ZERO
        flat[place + 3] = END
        flat[left + tokens - 2] = PRINT
        flat[left + tokens - 1] = letters[np.arange(n), printed]

        targets = np.zeros((n, width), np.int64)
        targets[row, kept - 1] = ZERO + answer
        scored = np.zeros((n, width), np.bool_)
        scored[row, kept - 1] = True
        where = torch.from_numpy(scored)
        return Batch(
            tokens=torch.from_numpy(text[:, margin:]).long(),
            targets=torch.from_numpy(targets),
            scored=where,
            supervised=where,
            padding=torch.from_numpy(padding) if kept.min() < width else None,
            facts={"statements": torch.from_numpy(statements[np.argsort(row)])},
        )

    def solve(self, tokens: Tensor) -> Tensor:
        """Replays the program; where the last set of the printed variable was cut off, counts what is left."""
        time = torch.arange(tokens.shape[1], device=tokens.device)
        end = (tokens == PRINT).long().argmax(1, keepdim=True) + 1  # [batch, 1], the printed variable
        printed = (tokens == tokens.gather(1, end)) & (time < end)
        following = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], PAD)], 1)
        last_set = torch.where(printed & (following == ASSIGN), time, -1).amax(1, keepdim=True)
        value = (printed & (following == INCREMENT) & (time > last_set)).sum(1, keepdim=True)
        return (ZERO + value).expand_as(tokens)

    def outcomes(self, batch: Batch, predictions: Tensor) -> dict[str, Tensor]:
        outcomes = super().outcomes(batch, predictions)
        statements = batch.facts["statements"]  # [batch]
        for b in range(int(statements.max()).bit_length()):
            inside = (statements >= 2**b) & (statements < 2 ** (b + 1))
            name = "1" if b == 0 else f"{2**b}_{2 ** (b + 1) - 1}"
            outcomes[f"error/statements_{name}"] = outcomes["sequence_error"][inside]
        return outcomes

    def _statements(self, evaluation_set: str) -> tuple[int, int, tuple[int, int, int]]:
        """Fewest and most statements of a set, and the weights of set, pass and increment."""
        if evaluation_set in (TRAIN, IN_DISTRIBUTION, "more_pass"):
            weights = MORE_PASS if evaluation_set == "more_pass" else WEIGHTS
            return self.min_statements, self.max_statements, weights
        name, length = split_length(evaluation_set, self.length)
        if length is None or name not in (IN_DISTRIBUTION, "more_pass"):
            known = [IN_DISTRIBUTION, "length_2x", "length_4x", "more_pass", "more_pass_length_2x"]
            raise self.unknown_set(evaluation_set, known)
        weights = MORE_PASS if name == "more_pass" else WEIGHTS
        if evaluation_set.endswith("x"):
            most = length * self.max_statements // self.length
        else:
            most = bisect.bisect_right(range(length), length, key=lambda count: _longest(count, weights)) - 1
        if most < 2:
            raise refuse_length(evaluation_set, length, "is too short for a program", self.length)
        return most // 2, most, weights


@dataclass
class _Events:
    """The sets and increments of ``n`` programs, in their order; what lies between are passes.

    Args:
        is_set: bool ``[events, n]``.
        is_increment: bool ``[events, n]``; where neither, a rejected increment, or behind the program's end.
        variable: uint8 ``[events, n]``, numbered in the order in which the program sets them.
        place: int32 ``[events, n]``, the token with which the event begins.
        is_first: bool ``[events, n]``, the first set of its variable.
    """

    is_set: NDArray[np.bool_]
    is_increment: NDArray[np.bool_]
    variable: NDArray[np.uint8]
    place: NDArray[np.int32]
    is_first: NDArray[np.bool_]


def _beginnings(
    rng: np.random.Generator, n: int, fewest: int, most: int, weights: tuple[int, int, int]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Passes before the first set, and the number of statements, of programs that set a variable: ``[n]`` each.

    Until something is set all increments are drawn again: a statement is a set or a pass, and the first set's place
    geometric. Programs that would end before it are drawn again.
    """
    p_set, p_pass, _ = weights
    passes = np.empty(0, np.int32)
    statements = np.empty(0, np.int32)
    while len(passes) < n:
        more = rng.integers(fewest, most, n, dtype=np.int32, endpoint=True)
        before = rng.geometric(p_set / (p_set + p_pass), n) - 1
        ends_after = before < more
        passes = np.concatenate([passes, before[ends_after].astype(np.int32)])
        statements = np.concatenate([statements, more[ends_after]])
    return passes[:n], statements[:n]


def _draw_events(
    rng: np.random.Generator,
    variables: int,
    weights: tuple[int, int, int],
    passes: NDArray[np.int32],
    statements: NDArray[np.int32],
) -> _Events:
    """Events proposed after geometric numbers of passes; rejected ones leave nothing, so their passes add up.

    ``passes`` and ``statements``: ``[n]``, by falling ``statements``.
    """
    p_set, p_pass, p_increment = weights
    n = len(passes)
    # Uniform below a multiple of 1 .. variables: the remainder of one draw is uniform for any number of variables.
    multiple = math.lcm(*range(1, variables + 1))
    below = (p_set + p_increment) * multiple
    scale = -1 / math.log(p_pass / sum(weights))
    labels = np.arange(variables, dtype=np.uint8)[:, None]
    limits = np.full((variables, len(passes)), LIMIT, np.uint8)

    known = np.ones(n, np.uint8)
    values = np.zeros((variables, n), np.uint8)
    # The first set, of what becomes variable 0.
    nothing = np.zeros((1, n), np.bool_)
    parts = [_Events(~nothing, nothing, nothing.view(np.uint8), passes[None], ~nothing)]
    statement, place = passes + 1, passes + 4
    while (unfinished := np.flatnonzero(statement < statements[: len(statement)])).size:
        n = int(unfinished[-1]) + 1
        statement, place, known, values = statement[:n], place[:n], known[:n], values[:, :n]
        # Rounded down, an exponential is geometric.
        gap = (rng.standard_exponential((EVENTS, n)) * scale).astype(np.int32)
        draw = rng.integers(0, below, (EVENTS, n), dtype=np.uint16).astype(np.min_scalar_type(below))
        is_set = draw < p_set * multiple
        is_increment = ~is_set

        # A set hits a variable known before or makes the next one known; an increment hits a known one.
        set_draw = (draw // (p_set * multiple // variables)).astype(np.uint8) * is_set
        known_at = np.empty((EVENTS, n), np.uint8)  # before the event
        is_first = np.empty((EVENTS, n), np.bool_)
        for e in range(EVENTS):
            known_at[e] = known
            np.greater_equal(set_draw[e], known, out=is_first[e])
            known += is_first[e].view(np.uint8)
        variable = np.minimum(set_draw, known_at) + (draw * is_increment % known_at).astype(np.uint8)

        # What a value would be after the event; where that is beyond LIMIT the increment is rejected.
        hit = variable[:, None] == labels  # [events, variables, n]
        added = (hit & is_increment[:, None]).view(np.uint8)
        kept = (~(hit & is_set[:, None])).view(np.uint8)
        values_at = np.empty(hit.shape, np.uint8)  # after the event
        for e in range(EVENTS):
            np.multiply(values, kept[e], out=values)
            np.add(values, added[e], out=values_at[e])
            np.minimum(values_at[e], limits[:, :n], out=values)
        accepted = ~np.logical_or.reduce(values_at > LIMIT, 1)
        statement_at = _running(statement, gap, accepted.view(np.uint8))
        place_at = _running(place, gap, accepted * (2 + 2 * is_set.view(np.uint8)))
        accepted &= statement_at[:-1] < statements[:n]
        parts.append(_Events(is_set & accepted, is_increment & accepted, variable, place_at[:-1], is_first & accepted))
        statement, place = statement_at[-1], place_at[-1]
    return _Events(
        is_set=_stacked([part.is_set for part in parts]),
        is_increment=_stacked([part.is_increment for part in parts]),
        variable=_stacked([part.variable for part in parts]),
        place=_stacked([part.place for part in parts]),
        is_first=_stacked([part.is_first for part in parts]),
    )


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    """Parts below each other, the narrower ones filled up with zeros on the right."""
    stacked = np.zeros((sum(len(part) for part in parts), parts[0].shape[1]), parts[0].dtype)
    start = 0
    for part in parts:
        stacked[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return stacked


def _running(start: NDArray[np.int32], gap: NDArray[np.int32], size: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Where things of these sizes begin that follow each other with these gaps, and where the next would, before its
    gap: ``[events + 1, n]``."""
    at = np.empty((len(gap) + 1, gap.shape[1]), np.int32)
    at[:-1] = gap
    at[-1] = 0
    at[0] += start
    at[1:] += size
    for e in range(1, len(at)):
        at[e] += at[e - 1]
    return at


def _longest(statements: int, weights: tuple[int, int, int]) -> int:
    """Tokens of the longest program of so many statements, answer included.

    A pass takes one token, an increment one and a set three more. No more than 4 a statement; and no more than 10
    standard deviations above the mean, which no program will ever reach.
    """
    p_set, _, p_increment = (weight / sum(weights) for weight in weights)
    mean = 3 * p_set + p_increment
    deviation = math.sqrt((9 * p_set + p_increment - mean**2) * statements)
    return statements + min(3 * statements, math.ceil(mean * statements + 10 * deviation)) + 3
