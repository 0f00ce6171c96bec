"""How a task's tokens are written, for prompts that people type and continuations that they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lcbench.errors import ConfigurationError, closest


class Spelling(Protocol):
    """A map between text and ids; every tokenizer is one."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """Ids ``[time]``.

        Raises:
            ConfigurationError: for text that has none.
        """

    def to_bytes(self, ids: NDArray[np.int64]) -> bytes:
        """The UTF-8 of ids ``[time]``; those of two pieces joined are those of the whole."""


class Words:
    """Symbols parted by white space; written with a space before each.

    Args:
        vocabulary: the symbol of every id, in order, without white space.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self._ids = {word: number for number, word in enumerate(self.vocabulary)}

    def encode(self, text: str) -> NDArray[np.int64]:
        """See ``Spelling.encode``."""
        words = text.split()
        for place, word in enumerate(words):
            if word not in self._ids:
                near = closest(word, self.vocabulary)[:-1]
                some = " ".join(self.vocabulary[:12]) + (" ..." if len(self.vocabulary) > 12 else "")
                raise ConfigurationError(
                    f"the prompt's word {place + 1}, {word!r}, is no symbol; {near} (of: {some})."
                )
        return np.array([self._ids[word] for word in words], np.int64)

    def to_bytes(self, ids: NDArray[np.int64]) -> bytes:
        """See ``Spelling.to_bytes``."""
        return "".join(f" {self.vocabulary[i]}" for i in ids.tolist()).encode()
