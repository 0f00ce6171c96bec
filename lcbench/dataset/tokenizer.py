"""What turns text into token ids and back."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Tokenizer(Protocol):
    """A map between text and ids ``0 .. len(vocabulary) - 1``; no text takes more tokens than bytes of UTF-8.

    Args:
        vocabulary: the text of every id, in order.
    """

    @property
    def vocabulary(self) -> tuple[str, ...]: ...

    def encode(self, text: str) -> NDArray[np.int64]:
        """Ids ``[time]``; nothing is added in front or behind."""

    def decode(self, ids: NDArray[np.int64]) -> str:
        """The text of ids ``[time]``."""


class Bytes:
    """One id a byte of UTF-8."""

    vocabulary = tuple(chr(byte) for byte in range(256))

    def encode(self, text: str) -> NDArray[np.int64]:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(self, ids: NDArray[np.int64]) -> str:
        """Bytes that are no UTF-8, as a model may say, become replacement characters."""
        return ids.astype(np.uint8).tobytes().decode(errors="replace")
