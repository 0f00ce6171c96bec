"""The one exception that is the user's to fix, and the hint that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigurationError(ValueError):
    """A mistake in what was asked for: one sentence that names the key, the value and the closest valid choice.

    The command line prints the sentence alone and exits with 2; it never shows a traceback for it.
    """


def closest(wrong: str, known: Iterable[str]) -> str:
    """The half sentence that names the closest valid choice."""
    best = difflib.get_close_matches(wrong, sorted(known), n=1, cutoff=0.0)
    return f"the closest is {best[0]}." if best else "there is none."
