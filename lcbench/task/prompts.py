"""The texts of passkey retrieval: the prompt, its three protocols, and how a continuation is scored.

Five parts joined by newlines (Mohtashami and Jaggi, "Landmark Attention", NeurIPS 2023, arXiv 2305.16300; wording of
the released generator, Apache-2.0):

    1. the task: three sentences, 148 characters
    2. the first characters of the filler: a unit of 89 characters, repeated, with a space between
    3. the fact, which states the key twice: 58 characters with five digits
    4. the first characters of the filler again: it begins anew
    5. the question and the opening of its answer, 37 characters, without a space at the end

- ``landmark``: the two fillers have n characters together and are cut anywhere, also inside a word; the first has 0..n
  of them, each equally likely; the key is uniform on 1..50000, without leading zeros. Correct: the first run of digits
  in the continuation, read as an integer, is the key.
- ``longlora`` (Chen et al., "LongLoRA", 2023, arXiv 2309.12307): the same prompt, its i-th length having
  ``longlora_characters(i)``. Correct: as many generated ids as the key has are the key's, all of them.
- ``infini`` (Munkhdalai, Faruqui, Gopal, 2024, arXiv 2404.07143): the filler is x whole units before the fact and y
  after it, and keys have four digits as in the paper's example (9054; the range is not stated). Scored token by token.

The key follows the prompt after a space.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
UNIT = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
FACT = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
LARGEST_KEY = 50_000
#: ends an answer whose end is scored
STOP = "."

_FACT = re.compile(r"The pass key is (\d+)\. Remember it\.")

Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Prompt:
    """A prompt and what should follow it.

    Args:
        text: what the model reads first.
        answers: the reference strings, in the order in which they should be said.
        stop: what follows the last of them and is scored: anything but a digit is right there; empty if nothing is.
        depth: percent of the haystack before the (first asked) fact.
        distance: characters between that fact's end and the question.
    """

    text: str
    answers: tuple[str, ...]
    stop: str
    depth: float
    distance: int

    @property
    def pieces(self) -> list[str]:
        """The continuation in pieces that are tokenized one by one."""
        return pieces(self.answers, self.stop)


def pieces(answers: Sequence[str], stop: str) -> list[str]:
    """`` first`` ``,`` `` second`` ..., then ``stop``."""
    said = [word for answer in answers for word in (",", " " + answer)][1:]
    return [*said, stop] if stop else said


class PromptFamily(ABC, Generic[Drawn]):
    """Prompts of one protocol: first everything random is drawn, then the text is made at any size."""

    #: what ends an answer and is scored
    stop: str = ""

    @abstractmethod
    def draw(self, rng: np.random.Generator, depth: int | None, most: int) -> Drawn:
        """What is random about a prompt of at most ``most`` characters; ``depth`` in percent, None for anywhere."""

    @abstractmethod
    def longest(self) -> Drawn:
        """A draw whose text without any haystack is as long as it gets."""

    @abstractmethod
    def write(self, drawn: Drawn, size: int) -> Prompt:
        """The prompt with ``size`` units of haystack."""

    @abstractmethod
    def most(self, characters: int) -> int:
        """Units of haystack that have at least so many characters."""

    @abstractmethod
    def choices(self, characters: int) -> int:
        """Answers that a guess has to choose from, in a prompt of so many characters."""


@dataclass(frozen=True)
class Hidden:
    """A key, and where it goes: at ``depth`` in percent, or, if that is None, where ``chance`` from 0 to 1 says."""

    key: int
    chance: float
    depth: int | None

    def before(self, size: int) -> int:
        """How much of a haystack of ``size`` lies before the fact: each of 0 .. size equally likely, or the depth."""
        return int(self.chance * (size + 1)) if self.depth is None else (size * self.depth + 50) // 100


class Passkeys(PromptFamily[Hidden]):
    """The prompt around one key.

    Args:
        smallest: key; keys are uniform up to ``largest``.
        largest: key.
        whole: count the filler in whole units instead of characters.
        stop: what ends the answer and is scored.
    """

    def __init__(self, smallest: int, largest: int, *, whole: bool = False, stop: str = "") -> None:
        self.smallest, self.largest = smallest, largest
        self.whole = whole
        self.stop = stop

    def draw(self, rng: np.random.Generator, depth: int | None, most: int) -> Hidden:
        return Hidden(int(rng.integers(self.smallest, self.largest, endpoint=True)), rng.random(), depth)

    def write(self, drawn: Hidden, size: int) -> Prompt:
        before = drawn.before(size)
        first, second = self._filler(before), self._filler(size - before)
        text = "\n".join([TASK, first, FACT.format(key=drawn.key), second, QUESTION])
        depth = 100 * before / size if size else 0.0
        return Prompt(text, (str(drawn.key),), self.stop, depth, len(second) + 2)

    def _filler(self, size: int) -> str:
        characters = size * (len(UNIT) + 1) - 1 if self.whole else size
        repeats = characters // (len(UNIT) + 1) + 1
        return (f"{UNIT} " * repeats)[: max(0, characters)]

    def longest(self) -> Hidden:
        return Hidden(self.largest, 0.0, None)

    def most(self, characters: int) -> int:
        return characters // (len(UNIT) + 1) + 1 if self.whole else characters

    def choices(self, characters: int) -> int:
        return self.largest - self.smallest + 1


PASSKEYS = {
    "landmark": Passkeys(1, LARGEST_KEY, stop=STOP),
    "longlora": Passkeys(1, LARGEST_KEY),
    "infini": Passkeys(1000, 9999, whole=True),
}


def read_passkey(text: str) -> tuple[int, tuple[str, ...]] | None:
    """Where a prompt ends in a text that begins with it, and its answers; None if it is no prompt."""
    found = _FACT.search(text)
    end = text.find(QUESTION)
    return None if found is None or end < 0 else (end + len(QUESTION), (found[1],))


def longlora_characters(i: int) -> int:
    """Characters of filler of LongLoRA's i-th length, for about 1000 i tokens of 3.75 characters."""
    return 3750 * i // 1024 * 1024


def landmark_correct(continuation: str, key: int) -> bool:
    """Landmark Attention's rule: the first run of digits, as an integer, is the key (``0123`` is 123).

    ``continuation``: the text generated after the prompt, 100 tokens in the paper and 10 in its script.
    """
    found = re.search(r"[0-9]+", continuation)
    return found is not None and int(found[0]) == key


def longlora_correct(generated: Sequence[int], key: Sequence[int]) -> bool:
    """LongLoRA's rule: the generated ids, as many as the key's, are the key's."""
    return len(generated) == len(key) and all(a == b for a, b in zip(generated, key, strict=True))


def infini_accuracy(generated: Sequence[int], key: Sequence[int]) -> float:
    """Infini-attention's measure: the share of the key's ids that are right in their place."""
    return sum(a == b for a, b in zip(generated, key, strict=False)) / len(key)


def ruler_score(continuation: str, references: Sequence[str]) -> float:
    """RULER's measure: the share of reference strings that the continuation contains, in any case."""
    said = continuation.lower()
    return sum(reference.lower() in said for reference in references) / len(references)
