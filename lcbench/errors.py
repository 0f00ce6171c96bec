"""The one exception that is the user's to fix, the hint that goes with it, and a full disk."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

#: a full disk, a used-up quota, a file beyond the largest size allowed
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ConfigurationError(ValueError):
    """A mistake in what was asked for: one sentence that names the key, the value and the closest valid choice.

    The command line prints the sentence alone and exits with 2; it never shows a traceback for it.
    """


def closest(wrong: str, known: Iterable[str]) -> str:
    """The half sentence that names the closest valid choice."""
    best = difflib.get_close_matches(wrong, sorted(known), n=1, cutoff=0.0)
    return f"the closest is {best[0]}." if best else "there is none."


def no_room(error: BaseException) -> str | None:
    """The sentence for an error that means a full disk; None for any other."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"no room to write ({error}); earlier files are intact, the same command continues once there is room"
    return None
