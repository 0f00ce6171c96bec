"""Lengths as people write them: 64, 64k, 1M, 1e9. Imports nothing: results are read with it."""

from __future__ import annotations

import re

_LENGTH = re.compile(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)([kM]?)")
_UNITS = {"": 1, "k": 1_000, "M": 1_000_000}


def parse_length(value: object) -> int:
    """A number of tokens. ``k`` is a thousand and ``M`` a million (64k is 64,000, not 65,536);
    ``e`` is that of a float.

    Raises:
        ValueError: if ``value`` is not a whole number of tokens.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _LENGTH.fullmatch(value.strip()) if isinstance(value, str) else None
    if match:
        tokens = float(match[1]) * _UNITS[match[2]]
        if tokens == int(tokens):
            return int(tokens)
    raise ValueError(f"{value!r} is not a number of tokens; write a whole number such as 512, 64k or 1M")
