"""Selective copying, one token at a time."""

from __future__ import annotations

import random

BLANK, SEPARATOR, MARKER = "_", "|", "#"


def generate(rng: random.Random, blanks: int, content: int, symbols: int) -> list[str]:
    """Content among blanks, a separator, the content again."""
    places = set(rng.sample(range(blanks + content), content))
    read = []
    written = []
    for place in range(blanks + content):
        if place in places:
            symbol = str(rng.randrange(symbols))
            read.append(symbol)
            written.append(symbol)
        else:
            read.append(BLANK)
    return [*read, SEPARATOR, *written]


def check(string: list[str], blanks: int, content: int) -> None:
    """Raises ValueError for a string that is not in the language."""
    if string.count(SEPARATOR) != 1:
        raise ValueError("not one separator")
    separator = string.index(SEPARATOR)
    read, written = string[:separator], string[separator + 1 :]
    if read.count(BLANK) != blanks or len(read) != blanks + content:
        raise ValueError("wrong number of blanks or of content tokens")
    if [symbol for symbol in read if symbol != BLANK] != written:
        raise ValueError("the output is not the content")


def check_with_markers(string: list[str], answers: list[str], blanks: int, content: int) -> None:
    """The same for the format with markers: input and the answers at the markers."""
    read, markers = string[: blanks + content], string[blanks + content :]
    if markers != [MARKER] * content:
        raise ValueError("does not end with one marker for each data token")
    if read.count(".") != blanks or len(read) != blanks + content:
        raise ValueError("wrong number of blanks or of data tokens")
    if [symbol for symbol in read if symbol != "."] != answers:
        raise ValueError("the answers are not the data")
