"""The interface of a corpus: files, each a document of text."""

from __future__ import annotations

import codecs
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from lcbench.errors import ConfigurationError

#: bytes of a file that are read at once: a file of any size, and a line of any length, takes no more memory
BLOCK = 2**20

#: what a file begins with that says its encoding; longer ones first, since one begins like another
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Skipped(Exception):  # noqa: N818 no error: a file that is left out and counted
    """Why a file is no document."""


class Corpus(ABC):
    """Where text comes from: a document a file.

    Documents are split by a hash of their text: the same files make the same parts on every machine, and two copies of
    a document are in one part. A subclass's constructor takes keyword-only arguments: those are its configuration.

    Args:
        validation: share of the documents that are kept for validation; at least one.
        test: share of the documents that are kept for the test; at least one.

    Raises:
        ConfigurationError: for shares that leave nothing to train on.
    """

    def __init__(self, *, validation: float = 0.05, test: float = 0.05) -> None:
        for key, share in (("validation", validation), ("test", test)):
            if not 0 < share < 1:
                raise ConfigurationError(f"corpus.{key}={share}: must be between 0 and 1, such as 0.05.")
        if validation + test >= 1:
            raise ConfigurationError(
                f"corpus.validation={validation} and corpus.test={test} leave nothing to train on; the closest that "
                f"works is less than corpus.validation={1 - test:g}."
            )
        self.validation, self.test = validation, test

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is, in a few words."""

    @property
    @abstractmethod
    def root(self) -> Path:
        """The folder that all files lie in."""

    @abstractmethod
    def files(self) -> list[Path]:
        """All files, sorted."""

    @abstractmethod
    def read(self, path: Path) -> Iterator[str]:
        """The text of a file in pieces, of about a megabyte.

        Raises:
            Skipped: if the file is no text; what was yielded before does not count.
        """

    @property
    def reading(self) -> str:
        """Options that change what ``read`` yields."""
        return ""

    def stamp(self) -> str:
        """32 hex digits that change when a file is added, removed or written to, without reading any."""
        digest = hashlib.blake2b(f"{type(self).__qualname__} {self.reading} {self.root}".encode(), digest_size=16)
        for path in self.files():
            facts = path.stat()
            digest.update(f"\n{path!s} {facts.st_size} {facts.st_mtime_ns}".encode(errors="surrogateescape"))
        return digest.hexdigest()


def files_below(root: Path, left_out: Callable[[str], bool]) -> list[Path]:
    """All files in a folder, however deep, sorted; without those whose name, or a folder's on the way, is left out."""
    found = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if not left_out(name)]
        found += [Path(folder, name) for name in names if not left_out(name)]
    return sorted(path for path in found if path.is_file())


def decoded(path: Path, encoding: str, marked: bool, strict: bool) -> Iterator[str]:
    """A file's text in pieces.

    Args:
        path: of the file.
        encoding: of its text.
        marked: whether a byte order mark at its beginning overrules ``encoding``.
        strict: skip the file for bytes that are no text, instead of replacing them by U+FFFD.

    Raises:
        Skipped: for a file that cannot be opened, or is not text: in an encoding whose text has no zero bytes, it has
            one in its first 8 KiB.
    """
    try:
        file = path.open("rb")
    except OSError:
        raise Skipped("unreadable") from None
    with file:
        block = file.read(BLOCK)
        if marked:
            encoding = next((name for mark, name in _MARKS if block.startswith(mark)), encoding)
        if b"\0" in block[:8192] and not codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
            raise Skipped("binary")
        decoder = codecs.getincrementaldecoder(encoding)("strict" if strict else "replace")
        try:
            while block:
                yield decoder.decode(block)
                block = file.read(BLOCK)
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise Skipped(f"not {encoding}") from None
        except OSError:
            raise Skipped("unreadable") from None
