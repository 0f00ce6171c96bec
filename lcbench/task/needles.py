"""RULER's needle-in-a-haystack tasks.

Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", 2024, arXiv 2404.06654;
wording of its released generator (Apache-2.0). A needle is one sentence that gives a key one of its values; the
question asks for all values of one key, or of several::

    One of the special magic numbers for lucky-otter is: 4910276.

| task | haystack | keys | values | keys, values of each, keys asked |
|---|---|---|---|---|
| single_1 | the passkey filler, a unit a line | words | numbers | 1, 1, 1 |
| single_2 | essays | words | numbers | 1, 1, 1 |
| single_3 | essays | words | uuids | 1, 1, 1 |
| multikey_1 | essays | words | numbers | 4, 1, 1 |
| multikey_2 | other needles, one a line | words | numbers | 1, 1, 1 |
| multikey_3 | other needles, one a line | uuids | uuids | 1, 1, 1 |
| multivalue | essays | words | numbers | 1, 4, 1 |
| multiquery | essays | words | numbers | 4, 1, 4 |

Words are an adjective and a noun, numbers have 7 digits, uuids are of version 4. In essays, needles go to different
depths out of 40 evenly spaced ones (0 to 100 %), at the beginning of the sentence there; between lines, to different
lines, each equally likely. Score: the share of the values asked for that the output contains.

What differs from RULER: words come from the lists below (RULER takes a package's longer ones); keys and values of a
prompt differ; the haystack grows until prompt and answer fit a length, where RULER keeps 128 tokens for the answer and
grows in steps. The essays are prose of Python's own reference manual, as ``pydoc`` holds it on any machine (RULER
takes Paul Graham's): sentences in plain words without digits or code, in the order of the topics' names, from the
beginning, over again where they end. They change with the version of Python.
"""

from __future__ import annotations

import re
import uuid
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Literal

import numpy as np

from lcbench.errors import ConfigurationError
from lcbench.task.prompts import UNIT, Prompt, PromptFamily

_ADJECTIVES = (
    "amber ancient blue bold brave bright broad calm clever cold crisp curious damp dark deep dry eager early empty "
    "faint fair fast fine firm flat fresh gentle glad golden grand gray green happy hidden hollow honest humble icy "
    "jolly keen kind large late lazy light little lively lone loud lucky mellow mild modern narrow neat noble odd old "
    "open pale plain polite proud quick quiet rapid rare red rich ripe robust rough round royal rustic sharp shiny "
    "silent silver simple slow small smooth soft solid steady still strong sunny sweet swift tall tame tidy tiny vast "
    "violet vivid warm wild wise witty young"
)
_NOUNS = (
    "acorn anchor apple apron arrow badge banjo barrel basket beacon bell berry blanket boat bottle branch brick "
    "bridge broom brush bucket button cabin camel candle canoe carpet castle cedar chain chair cherry circle clock "
    "cloud coat comet copper coral corner cradle creek cricket crown curtain daisy desk dove drum eagle engine falcon "
    "feather fence fiddle flute forest fountain garden gate glove hammer harbor hat hill island jacket jar kettle key "
    "kite ladder lake lamp lantern leaf lemon magnet maple marble meadow mirror mitten moon mountain needle nest oak "
    "ocean orchard otter paddle panda paper pearl pencil pepper piano pillow planet plum pocket pond pony puzzle "
    "quilt rabbit raven ribbon river robin rope saddle sail shell shovel spoon squirrel stone sunset table thimble "
    "tiger tower train tulip tunnel turtle valley violin wagon walnut whistle willow window"
)
ADJECTIVES, NOUNS = _ADJECTIVES.split(), _NOUNS.split()

Kind = Literal["words", "numbers", "uuids"]
#: depths at which needles may stand in essays, in percent
DEPTHS = tuple(round(100 * i / 39) for i in range(40))
INTRODUCTION = (
    "{Some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards."
)
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
QUESTION = (
    "What {are_all} the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text {are}"
)

_NEEDLE = re.compile(r"One of the special magic (?:words|numbers|uuids) for (\S+) is: (\S+)\.")
_QUESTION = re.compile(
    r"What (?:is|are all) the special magic (?P<kind>\w+) for (?P<query>.+?) mentioned in the provided text\? "
    r"The special magic (?P=kind) for (?P=query) mentioned in the provided text (?:is|are)"
)
_PROSE = re.compile(r"[A-Z][a-z]* [A-Za-z ,;:'\"()-]{24,300}\.")


@dataclass(frozen=True)
class Needles:
    """What is random about a prompt.

    Args:
        needles: key and value of each, in the order in which they stand.
        asked: the keys that the question names.
        places: shares of the haystack's sentences or lines that lie before each, increasing.
        others: the lines that are a haystack of needles.
    """

    needles: tuple[tuple[str, str], ...]
    asked: tuple[str, ...]
    places: tuple[float, ...]
    others: tuple[str, ...] = ()


class RulerNeedles(PromptFamily[Needles]):
    """One of the tasks.

    Args:
        haystack: what surrounds the needles.
        key_kind: what keys are.
        value_kind: what values are.
        keys: different keys.
        values: values of each.
        queries: keys asked for.
    """

    def __init__(
        self,
        haystack: Literal["filler", "essays", "needles"],
        key_kind: Kind,
        value_kind: Kind,
        keys: int = 1,
        values: int = 1,
        queries: int = 1,
    ) -> None:
        self.haystack = haystack
        self.key_kind, self.value_kind = key_kind, value_kind
        self.keys, self.values, self.queries = keys, values, queries

    def draw(self, rng: np.random.Generator, depth: int | None, most: int) -> Needles:
        others = self.most(most) if self.haystack == "needles" else 0
        keys = _different(rng, self.key_kind, self.keys)
        values = _different(rng, self.value_kind, self.keys * self.values)
        needles = [(key, values.pop()) for key in keys for _ in range(self.values)]
        asked = tuple(keys[i] for i in rng.permutation(self.keys)[: self.queries])
        count = len(needles)
        order = rng.permutation(count)
        if depth is not None:
            # the first needle asked for stands where it is told, others asked for behind it, the rest anywhere
            first = next(i for i in order if needles[i][0] in asked)
            places = [depth / 100 if i == first else rng.random() for i in order]
            for k, i in enumerate(order):
                if i != first and needles[i][0] in asked:
                    places[k] = depth / 100 + (1 - depth / 100) * places[k]
            sorting = sorted(range(count), key=lambda k: (places[k], order[k] != first))
            order, places = order[sorting], [places[k] for k in sorting]
        elif self.haystack == "essays":
            places = sorted(float(place) / 100 for place in rng.choice(DEPTHS, count, replace=False))
        else:
            places = sorted(rng.random(count).tolist())
        lines = self._others(rng, others, keys, values) if others else ()
        return Needles(tuple(needles[i] for i in order), asked, tuple(places), lines)

    def _others(self, rng: np.random.Generator, count: int, keys: list[str], values: list[str]) -> tuple[str, ...]:
        """Needles of other keys. Among themselves keys may repeat, as there are only so many words."""
        pairs = zip(_some(rng, self.key_kind, count), _some(rng, self.value_kind, count), strict=True)
        return tuple(self._needle(key, value) for key, value in pairs if key not in keys and value not in values)

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.value_kind, key=key, value=value)

    def write(self, drawn: Needles, size: int) -> Prompt:
        needles = [self._needle(key, value) for key, value in drawn.needles]
        if self.haystack == "essays":
            units, separator = essay(size), " "
        else:
            units = [UNIT] * size if self.haystack == "filler" else list(drawn.others[:size])
            separator = "\n"
        before = [int(len(units) * place) for place in drawn.places]
        parts, last = [], 0
        for needle, place in zip(needles, before, strict=True):
            parts += [*units[last:place], needle]
            last = place
        context = separator.join([*parts, *units[last:]])

        one = self.queries * self.values == 1
        kind = self.value_kind[:-1] if one else self.value_kind
        words = {"Some": "A" if one else "Some", "are": "is" if one else "are", "are_all": "is" if one else "are all"}
        *others, final = drawn.asked
        query = f"{', '.join(others)}, and {final}" if others else final
        head = INTRODUCTION.format(kind=kind, **words)
        tail = QUESTION.format(kind=kind, query=query, **words)

        answers = tuple(value for key in drawn.asked for name, value in drawn.needles if name == key)
        first = next(i for i, (key, _) in enumerate(drawn.needles) if key in drawn.asked)
        end = context.index(needles[first]) + len(needles[first])
        depth = 100 * before[first] / max(1, len(units))
        return Prompt(f"{head}\n{context}\n{tail}", answers, self.stop, depth, len(context) - end + 1)

    def longest(self) -> Needles:
        words = f"{max(ADJECTIVES, key=len)}-{max(NOUNS, key=len)}"
        text = {"words": words, "numbers": "1" * 7, "uuids": "0" * 36}
        asked = tuple(str(i) + text[self.key_kind][1:] for i in range(self.queries))
        others = (text[self.key_kind],) * (self.keys - self.queries)
        needles = tuple((key, text[self.value_kind]) for key in (*asked, *others) for _ in range(self.values))
        return Needles(needles, asked, (0.0,) * len(needles))

    def most(self, characters: int) -> int:
        least = {"filler": len(UNIT), "essays": 2, "needles": len(self._needle("red-hat", "1234567"))}
        return characters // least[self.haystack] + 1

    def choices(self, characters: int) -> int:
        if self.haystack == "needles":
            return self.most(characters)
        return self.keys * self.values if self.keys * self.values > 1 else 9_000_000


def read_needles(text: str) -> tuple[int, tuple[str, ...]] | None:
    """Where a prompt ends in a text that begins with it, and its answers; None if it is no prompt."""
    question = _QUESTION.search(text)
    if question is None:
        return None
    said: dict[str, list[str]] = {}
    for key, value in _NEEDLE.findall(text):
        said.setdefault(key, []).append(value)
    asked = re.split(r", and |, ", question["query"])
    return question.end(), tuple(value for key in asked for value in said[key])


RULER = {
    "niah_single_1": RulerNeedles("filler", "words", "numbers"),
    "niah_single_2": RulerNeedles("essays", "words", "numbers"),
    "niah_single_3": RulerNeedles("essays", "words", "uuids"),
    "niah_multikey_1": RulerNeedles("essays", "words", "numbers", keys=4),
    "niah_multikey_2": RulerNeedles("needles", "words", "numbers"),
    "niah_multikey_3": RulerNeedles("needles", "uuids", "uuids"),
    "niah_multivalue": RulerNeedles("essays", "words", "numbers", values=4),
    "niah_multiquery": RulerNeedles("essays", "words", "numbers", keys=4, queries=4),
}


def _some(rng: np.random.Generator, kind: Kind, count: int) -> list[str]:
    """Independent words, numbers or uuids, each equally likely."""
    if kind == "numbers":
        return [str(number) for number in rng.integers(10**6, 10**7, count)]
    if kind == "words":
        chosen = rng.integers(0, len(ADJECTIVES) * len(NOUNS), count).tolist()
        return [f"{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}" for i in chosen]
    random = rng.bytes(16 * count)
    return [str(uuid.UUID(bytes=random[16 * i : 16 * i + 16], version=4)) for i in range(count)]


def _different(rng: np.random.Generator, kind: Kind, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found |= dict.fromkeys(_some(rng, kind, count - len(found)))
    return list(found)


@cache
def _prose() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The sentences, and how many words the first 1, 2, 3, ... of them have."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ConfigurationError(
            "evaluation.sets: the haystack of essays is text of the package pydoc_data, which this Python lacks; the "
            "closest set without it is niah_single_1."
        ) from error
    found: dict[str, None] = {}
    for topic in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            for sentence in re.split(r"(?<=[.?!:]) (?=[A-Z])", " ".join(paragraph.split())):
                if _PROSE.fullmatch(sentence):
                    found[sentence] = None
    return tuple(found), tuple(accumulate(len(sentence.split()) for sentence in found))


def essay(words: int) -> list[str]:
    """The first ``words`` words of the essays as sentences, the last of them cut."""
    sentences, reached = _prose()
    again, rest = divmod(words, reached[-1])
    whole = bisect_right(reached, rest)
    last = sentences[whole].split()[: rest - (reached[whole - 1] if whole else 0)]
    return [*sentences * again, *sentences[:whole], *([" ".join(last)] if last else [])]
