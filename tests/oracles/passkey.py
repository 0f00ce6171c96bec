"""Passkey strings in symbols, one token at a time, and a checker of their grammar."""

from __future__ import annotations

import random

UNIT = "abcdefghijkl"
LABELS = "ABCDEFGHIJKLMNOP"


def generate(
    rng: random.Random, length: int, digits: int = 3, keys: int = 1, values: int = 1, mentions: int = 2
) -> list[str]:
    """A string of ``length`` tokens, answer included, its facts anywhere."""
    facts = []
    labels = rng.sample(LABELS, keys) if keys > 1 else [""]
    for label in labels:
        for _ in range(values):
            number = rng.randrange(10**digits)
            while any(number == other for _, other in facts):
                number = rng.randrange(10**digits)
            facts.append((label, number))
    asked = labels[0]
    rng.shuffle(facts)
    named = 1 if keys > 1 else 0
    filler = length - len(facts) * (1 + named + mentions * (digits + 1)) - 1 - named - values * digits
    places = sorted(rng.randint(0, filler) for _ in facts)
    string = []
    answer = []
    written = 0
    phase = 0
    for place, (label, number) in zip(places, facts, strict=True):
        while written < place:
            string.append(UNIT[phase % 12])
            written += 1
            phase += 1
        string.append("key")
        if named:
            string.append(label)
        for mention in range(mentions):
            for digit in str(number).zfill(digits):
                string.append(digit)
                if mention == 0 and label == asked:
                    answer.append(digit)
            string.append("end" if mention == mentions - 1 else "same")
        phase = 0
    while written < filler:
        string.append(UNIT[phase % 12])
        written += 1
        phase += 1
    string.append("ask")
    if named:
        string.append(asked)
    for digit in answer:
        string.append(digit)
    return string


def check(string: list[str], digits: int, keys: int, values: int, mentions: int, noise: bool = False) -> None:
    """Raises ValueError for a string that is not in the language."""
    named = 1 if keys > 1 else 0
    facts: list[tuple[str, str]] = []
    place = 0
    phase = 0

    def take(kind: str, count: int) -> str:
        nonlocal place
        taken = string[place : place + count]
        place += count
        if len(taken) < count or any(word not in kind for word in taken):
            raise ValueError("a fact or question is broken")
        return "".join(taken)

    while place < len(string) and string[place] != "ask":
        word = string[place]
        place += 1
        if word == "key":
            label = take(LABELS, named)
            number = take("0123456789", digits)
            for _ in range(mentions - 1):
                if string[place] != "same":
                    raise ValueError("the number is not stated as often as it should be")
                place += 1
                if take("0123456789", digits) != number:
                    raise ValueError("a fact states two numbers")
            if string[place] != "end":
                raise ValueError("a fact does not end")
            place += 1
            facts.append((label, number))
            phase = 0
        elif word not in UNIT:
            raise ValueError("something in the filler that is no filler")
        elif not noise and word != UNIT[phase % 12]:
            raise ValueError("the filler is not the unit from its beginning")
        else:
            phase += 1
    if place == len(string):
        raise ValueError("no question")
    place += 1
    asked = take(LABELS, named)
    if len(facts) != keys * values or len({number for _, number in facts}) != keys * values:
        raise ValueError("not the right number of facts, or numbers repeat")
    labels = [label for label, _ in facts]
    if len(set(labels)) != keys or any(labels.count(label) != values for label in labels):
        raise ValueError("keys do not have their facts")
    expected = "".join(number for label, number in facts if label == asked)
    if not expected or "".join(string[place:]) != expected:
        raise ValueError("the answer is not what the key had")
