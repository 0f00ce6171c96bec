"""What turns text into token ids and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lcbench.corpus.documents import Watcher


class Names(Sequence[str]):
    """What ids stand for, made when one of them is asked for: how many there are is known before.

    Args:
        size: how many.
        make: all of them.
    """

    def __init__(self, size: int, make: Callable[[], Sequence[str]]) -> None:
        self._size, self._make = size, make

    @cached_property
    def _made(self) -> tuple[str, ...]:
        return tuple(self._make())

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...

    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        return self._made[place]


class Tokenizer(Protocol):
    """A map between text and ids ``0 .. len(vocabulary) - 1``; no text takes more tokens than bytes of UTF-8.

    Args:
        vocabulary: the text of every id, in order.
        identity: a word that no tokenizer has which makes other ids of some text.
        begin: the id that stands before a document, where the vocabulary has one.
        lossy: whether what is encoded may not be what is decoded; ``aligned`` then says what each token stands for.
        unknown: the id that stands for what the tokenizer cannot say, if there is one.
    """

    @property
    def unknown(self) -> int | None: ...

    @property
    def begin(self) -> int | None: ...

    @property
    def lossy(self) -> bool: ...

    def prepare(self, watcher: Watcher) -> None:
        """Make ready what may take a while."""

    @property
    def vocabulary(self) -> Sequence[str]: ...

    @property
    def identity(self) -> str: ...

    @property
    def byte_lengths(self) -> NDArray[np.int64]:
        """Bytes of UTF-8 that each id stands for, ``[vocabulary]``."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """Ids ``[time]``; nothing is added in front or behind."""

    def aligned(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids ``[time]``, and the byte of ``text`` at which what each stands for ends, ``[time]``: never falling, the
        last at the end of ``text``."""

    def to_bytes(self, ids: NDArray[np.int64]) -> bytes:
        """The UTF-8 that ids ``[time]`` stand for; it may begin or end within a character, as they may."""

    def decode(self, ids: NDArray[np.int64]) -> str:
        """The text of ids ``[time]``; bytes that are no UTF-8, as a model may say, become replacement characters."""


class Lossless(ABC):
    """What tokenizers share that lose nothing and have no id that stands before a document."""

    begin: int | None = None
    unknown: int | None = None
    lossy: bool = False

    @property
    @abstractmethod
    def byte_lengths(self) -> NDArray[np.int64]:
        """See ``Tokenizer.byte_lengths``."""

    @abstractmethod
    def encode(self, text: str) -> NDArray[np.int64]:
        """See ``Tokenizer.encode``."""

    def prepare(self, watcher: Watcher) -> None:
        """See ``Tokenizer.prepare``: nothing to do."""
        return

    def aligned(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See ``Tokenizer.aligned``."""
        ids = self.encode(text)
        return ids, np.cumsum(self.byte_lengths[ids])


class Table(Lossless):
    """A tokenizer whose every id stands for bytes of its own, whatever is around it."""

    @property
    @abstractmethod
    def known(self) -> Sequence[bytes]:
        """What each id stands for, ``[vocabulary]``."""

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:  # type: ignore[override]
        """See ``Tokenizer.byte_lengths``."""
        return np.array([len(token) for token in self.known], np.int64)

    def to_bytes(self, ids: NDArray[np.int64]) -> bytes:
        """See ``Tokenizer.to_bytes``."""
        known = self.known
        return b"".join([known[i] for i in ids.tolist()])

    def decode(self, ids: NDArray[np.int64]) -> str:
        """See ``Tokenizer.decode``."""
        return self.to_bytes(ids).decode(errors="replace")


#: whether a tokenizer that loses something is refused, or counted by the bytes of the original
Lossy = Literal["refuse", "count"]


def bytes_of_characters(text: str, places: Sequence[int]) -> NDArray[np.int64]:
    """The byte of ``text`` before which as many characters come as each of ``places`` says, ``[time]``."""
    characters = np.asarray(places, np.int64)
    if text.isascii():
        return characters
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])[characters]


def closed(ends: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Where tokens end, ``[time]``, such that nothing of ``size`` bytes is between them.

    What a tokenizer leaves out belongs to the token after it, or to the last.
    """
    found = np.maximum.accumulate(ends)
    found[-1:] = size
    return found


def byte_characters() -> list[str]:
    """The character that stands for each byte in GPT-2's files: itself where it can be seen, else one from 256 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + hidden.index(byte)) for byte in range(256)]
