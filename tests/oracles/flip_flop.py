"""Flip-flop strings, one pair at a time."""

from __future__ import annotations

import random


def generate(rng: random.Random, length: int, p_ignore: float) -> list[str]:
    """A string of FFL(p_ignore), as a list of symbols."""
    pairs = length // 2
    weights = [(1 - p_ignore) / 2, (1 - p_ignore) / 2, p_ignore]
    string = []
    memory = ""
    for pair in range(pairs):
        if pair == 0:
            instruction = "w"
        elif pair == pairs - 1:
            instruction = "r"
        else:
            instruction = rng.choices("wri", weights)[0]
        bit = memory if instruction == "r" else rng.choice("01")
        if instruction == "w":
            memory = bit
        string.append(instruction)
        string.append(bit)
    return string


def check(string: list[str]) -> None:
    """Raises ValueError for a string that is not in the language."""
    if len(string) % 2 or len(string) < 4:
        raise ValueError("odd or too short")
    instructions, bits = string[0::2], string[1::2]
    if not set(instructions) <= set("wri") or not set(bits) <= set("01"):
        raise ValueError("not pairs of an instruction and a bit")
    if instructions[0] != "w":
        raise ValueError("does not begin with a write")
    if instructions[-1] != "r":
        raise ValueError("does not end with a read")
    memory = ""
    for instruction, bit in zip(instructions, bits, strict=True):
        if instruction == "w":
            memory = bit
        if instruction == "r" and bit != memory:
            raise ValueError("a read does not return the bit last written")


def reads(string: list[str]) -> list[tuple[int, str, int]]:
    """Every read of a string: its place among the tokens, the bit, and the distance to its write in pairs."""
    found = []
    written = 0
    for place in range(0, len(string), 2):
        if string[place] == "w":
            written = place
        if string[place] == "r":
            found.append((place, string[written + 1], (place - written) // 2))
    return found
