"""The interface of a corpus: documents of text, whatever they are kept in."""

from __future__ import annotations

import codecs
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lcbench.errors import ConfigurationError, closest

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


#: the parts of a corpus
TRAIN, VALIDATION, TEST = "train", "validation", "test"
#: a document's part as a small integer; 0: its source does not say
PARTS = (None, TRAIN, VALIDATION, TEST)

#: how parts are made: of whole documents, of stretches of each, or of stretches where there are too few documents
Split = Literal["auto", "documents", "stretches"]


class Skipped(Exception):  # noqa: N818 no error: a document that is left out and counted
    """Why something is no document."""


@dataclass(frozen=True)
class Document:
    """A document as a corpus hands it over.

    Args:
        name: where a person finds it.
        pieces: its text, in pieces of any size, of about a megabyte where there is a choice. May raise ``Skipped``:
            what was yielded before does not count.
        part: of the corpus, where its source says so; None: it is to be split.
    """

    name: str
    pieces: Iterator[str]
    part: str | None = None


class Corpus(ABC):
    """Where text comes from.

    Documents that come without a part are split by a hash of their text: the same documents make the same parts on
    every machine, and two copies of a document are in one part. Only parts that the source does not bring are cut
    out of training. A subclass's constructor takes keyword-only arguments: those are its configuration.

    Args:
        validation: share of the documents that are kept for validation; at least one.
        test: share of the documents that are kept for the test; at least one.
        split: ``documents``: a document is in one part; ``stretches``: the beginning of every document is for
            training, what follows for validation, its end for the test, by the same shares of its bytes; ``auto``:
            documents, or stretches where there are fewer than three.

    Raises:
        ConfigurationError: for shares that leave nothing to train on.
    """

    #: bytes that a document must have at least, since one of so many tokens has; others are left out and counted
    min_document: int = 1
    #: words of a part as its publishers count them; what a word perplexity over the whole part is by
    words: Mapping[str, int] = {}
    #: where those counts are from
    words_from: str = ""
    #: what its documents are made of, for messages and counts
    unit: str = "files"

    def __init__(self, *, validation: float = 0.05, test: float = 0.05, split: Split = "auto") -> None:
        for key, share in (("validation", validation), ("test", test)):
            if not 0 < share < 1:
                raise ConfigurationError(f"corpus.{key}={share}: must be between 0 and 1, such as 0.05.")
        if validation + test >= 1:
            raise ConfigurationError(
                f"corpus.validation={validation} and corpus.test={test} leave nothing to train on; the closest that "
                f"works is less than corpus.validation={1 - test:g}."
            )
        self.validation, self.test, self.split = validation, test, split

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is, in a few words."""

    @abstractmethod
    def documents(self, scratch: Path) -> Iterator[Document]:
        """All documents, each to be read to its end before the next; ``scratch`` is a folder for the time being."""

    @abstractmethod
    def stamp(self) -> str:
        """32 hex digits that change when the documents do, as far as can be told without reading them."""

    @property
    def size(self) -> int:
        """Bytes that there are to read; 0 where nobody knows."""
        return 0


class FileCorpus(Corpus):
    """A document a file."""

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

    @property
    def size(self) -> int:
        """See ``Corpus.size``."""
        return sum(path.stat().st_size for path in self.files())

    def documents(self, scratch: Path) -> Iterator[Document]:
        """See ``Corpus.documents``."""
        for path in self.files():
            inside = path.is_relative_to(self.root) and path != self.root
            yield Document(str(path.relative_to(self.root) if inside else path), self.read(path))

    def stamp(self) -> str:
        """See ``Corpus.stamp``: changes when a file is added, removed or written to."""
        return stamp_of(f"{type(self).__qualname__} {self.reading} {self.root}", self.files())


def stamp_of(words: str, files: list[Path]) -> str:
    """32 hex digits of ``words`` and of the names, sizes and times of ``files``."""
    # 2: what a text's folder holds
    digest = hashlib.blake2b(f"2 {words}".encode(errors="surrogateescape"), digest_size=16)
    for path in files:
        facts = path.stat()
        digest.update(f"\n{path!s} {facts.st_size} {facts.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def near(path: str) -> str:
    """The half sentence that names what lies where ``path`` should and is called most like it."""
    folder = Path(path).parent
    return closest(path, map(str, folder.glob("*")) if folder.is_dir() else [])


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
