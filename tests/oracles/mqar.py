"""Multi-query associative recall, one token at a time."""

from __future__ import annotations

import random


def generate(
    rng: random.Random, length: int, pairs: int, vocabulary_size: int, skew: float
) -> tuple[list[int], list[int]]:
    """Token ids, and the target id at each place, -1 where there is none."""
    keys = rng.sample(range(1, vocabulary_size // 2), pairs)
    values = rng.sample(range(vocabulary_size // 2, vocabulary_size), pairs)
    tokens = []
    for key, value in zip(keys, values, strict=True):
        tokens.append(key)
        tokens.append(value)
    slots = list(range((length - 2 * pairs) // 2))
    weights = [(slot + 1) ** (skew - 1) for slot in slots]
    asked = {}
    for key, value in zip(keys, values, strict=True):
        index = rng.choices(range(len(slots)), weights)[0]
        asked[2 * pairs + 2 * slots.pop(index)] = (key, value)
        weights.pop(index)
    targets = [-1] * (2 * pairs)
    for place in range(2 * pairs, length):
        key, value = asked.get(place, (0, -1))
        tokens.append(key)
        targets.append(value)
    return tokens, targets


def check(tokens: list[int], targets: list[int], pairs: int, vocabulary_size: int) -> None:
    """Raises ValueError where a row with blanks between its queries is not as defined."""
    half = vocabulary_size // 2
    keys, values = tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
    if len(set(keys)) != pairs or len(set(values)) != pairs:
        raise ValueError("keys or values repeat")
    if not all(1 <= key < half for key in keys) or not all(half <= value < vocabulary_size for value in values):
        raise ValueError("a key among the values, or a value among the keys")
    value_of = dict(zip(keys, values, strict=True))
    asked = []
    for place, (token, target) in enumerate(zip(tokens, targets, strict=True)):
        if place < 2 * pairs or token == 0:
            if target != -1:
                raise ValueError("a target where nothing is asked")
            continue
        if place % 2:
            raise ValueError("a query in the second token of a slot")
        asked.append(token)
        if target != value_of.get(token):
            raise ValueError("the target is not the value of the key")
    if sorted(asked) != sorted(keys):
        raise ValueError("not each key is asked once")
