"""What turns text into token ids and back."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Tokenizer(Protocol):
    """A map between text and ids ``0 .. len(vocabulary) - 1`` that loses nothing; no text takes more tokens than bytes
    of UTF-8.

    Args:
        vocabulary: the text of every id, in order.
        identity: a word that no tokenizer has which makes other ids of some text.
    """

    @property
    def vocabulary(self) -> tuple[str, ...]: ...

    @property
    def identity(self) -> str: ...

    @property
    def byte_lengths(self) -> NDArray[np.int64]:
        """Bytes of UTF-8 that each id stands for, ``[vocabulary]``."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """Ids ``[time]``; nothing is added in front or behind."""

    def to_bytes(self, ids: NDArray[np.int64]) -> bytes:
        """The UTF-8 that ids ``[time]`` stand for; it may begin or end within a character, as they may."""

    def decode(self, ids: NDArray[np.int64]) -> str:
        """The text of ids ``[time]``; bytes that are no UTF-8, as a model may say, become replacement characters."""
