"""Text as its bytes: 256 ids, no training, and nothing that it cannot say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lcbench.tokenizer.base import Lossless


class Bytes(Lossless):
    """One id a byte of UTF-8."""

    vocabulary = tuple(chr(byte) for byte in range(256))
    identity = "bytes"
    byte_lengths: NDArray[np.int64] = np.ones(256, np.int64)  # type: ignore[assignment]

    def encode(self, text: str) -> NDArray[np.int64]:
        """See ``Tokenizer.encode``."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def to_bytes(self, ids: NDArray[np.int64]) -> bytes:
        """See ``Tokenizer.to_bytes``."""
        return ids.astype(np.uint8).tobytes()

    def decode(self, ids: NDArray[np.int64]) -> str:
        """See ``Tokenizer.decode``."""
        return self.to_bytes(ids).decode(errors="replace")
