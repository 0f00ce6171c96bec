"""A corpus as arrays on the disk: read once, cut into tokens once, and mapped into memory from then on.

    text/<stamp>/                  text.bin    all documents one after another, UTF-8
                                   ends.npy, digests.npy    where each ends, and the hash of its text
                                   about.json  counts: files, bytes, and what was left out or replaced
    tokens/<content>-<tokenizer>/  tokens.bin  the same documents as ids, in the smallest unsigned integers
                                   ends.npy, about.json

in the cache (``cache_directory``). The stamp changes with the files, the content with the text, so a corpus that was
changed is read again, and one that was only copied or moved is not cut into tokens again. Bytes need no second file:
they are the text. Memory does not depend on the size of the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lcbench.corpus.base import BLOCK, Corpus, Skipped
from lcbench.corpus.cache import cache_directory, made_once
from lcbench.errors import ConfigurationError
from lcbench.tokenizer.base import Tokenizer

TRAIN, VALIDATION, TEST = "train", "validation", "test"

#: the bytes between words
_SPACES = np.isin(np.arange(256), list(b" \t\n\v\f\r"))


class Watcher(Protocol):
    """Who is told how far work has come."""

    def begin(self, description: str, total: int) -> None: ...

    def tick(self, more: int) -> None: ...


class Unwatched:
    """Tells nobody."""

    def begin(self, description: str, total: int) -> None:
        return

    def tick(self, more: int) -> None:
        return


@dataclass(frozen=True)
class Documents:
    """Documents one after another.

    Args:
        tokens: ids of all of them, ``[tokens]``, mapped from the disk.
        ends: where each ends, int64 ``[documents]``.
        digests: the first 64 bits of the hash of each one's text, uint64 ``[documents]``.
        about: what a record says of them.
    """

    tokens: NDArray[Any]
    ends: NDArray[np.int64]
    digests: NDArray[np.uint64]
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, ``[documents]``."""
        return np.diff(self.ends, prepend=0)

    def of(self, document: int) -> NDArray[Any]:
        """The ids of a document, ``[time]``."""
        start = self.ends[document - 1] if document else 0
        return self.tokens[start : self.ends[document]]


def text_of(corpus: Corpus, watcher: Watcher) -> Documents:
    """The text of a corpus, a token a byte.

    Raises:
        ConfigurationError: if none of its files is text, or the cache cannot be written.
    """
    place = cache_directory() / "text" / corpus.stamp()
    made_once(place, lambda folder: _write_text(corpus, folder, watcher), _is_whole)
    return _opened(place, np.load(place / "digests.npy"))


def tokens_of(corpus: Corpus, tokenizer: Tokenizer, watcher: Watcher) -> Documents:
    """The documents of a corpus in the tokens of ``tokenizer``.

    Raises:
        ConfigurationError: if none of its files is text, or the cache cannot be written.
    """
    text = text_of(corpus, watcher)
    if tokenizer.identity == "bytes":
        return text
    place = cache_directory() / "tokens" / f"{text.about['content']}-{tokenizer.identity}"
    made_once(place, lambda folder: _write_tokens(text, tokenizer, folder, watcher), _is_whole)
    return _opened(place, text.digests)


def parts_of(documents: Documents, corpus: Corpus) -> dict[str, NDArray[np.int64]]:
    """The documents of each part, in the order of their hashes: a random one, the same everywhere.

    Documents with the same text are in one part.

    Raises:
        ConfigurationError: if there are too few documents for three parts.
    """
    order = np.argsort(documents.digests, kind="stable")
    _, place = np.unique(documents.digests[order], return_inverse=True)  # of each text among the different ones
    different = int(place[-1]) + 1
    if different < 3:
        raise ConfigurationError(
            f"corpus: {corpus.name} has too few different documents, {different}, for training, validation and test; "
            "the least is 3 (a document is a file)."
        )
    test = max(1, round(corpus.test * different))
    validation = max(1, round(corpus.validation * different))
    if test + validation >= different:
        test, validation = 1, 1
    return {
        TEST: order[place < test],
        VALIDATION: order[(place >= test) & (place < test + validation)],
        TRAIN: order[place >= test + validation],
    }


def pieces_of(text: NDArray[np.uint8]) -> Iterator[tuple[str, bool]]:
    """The text of a document in pieces of at most a megabyte, and whether each ends within a word.

    A piece ends between a word and the white space after it, if it has any: there a byte-pair encoding, which looks
    at words one by one, is that of the whole document.
    """
    start = 0
    while start < len(text):
        stop, within = min(start + BLOCK, len(text)), False
        if stop < len(text):
            space = _SPACES[text[start : stop + 1]]
            ends = np.flatnonzero(~space[:-1] & space[1:] & (text[start:stop] < 128))
            within = not len(ends)
            if within:
                while text[stop] & 0xC0 == 0x80:  # not within a character
                    stop -= 1
            else:
                stop = start + int(ends[-1]) + 1
        yield text[start:stop].tobytes().decode(), within
        start = stop


def word_starts(text: bytes) -> NDArray[np.bool_]:
    """Where a word begins: a byte that is no white space, after one that is or none, ``[bytes]``."""
    space = _SPACES[np.frombuffer(text, np.uint8)]
    return ~space & np.concatenate([np.ones(min(1, len(space)), bool), space[:-1]])


def _write_text(corpus: Corpus, folder: Path, watcher: Watcher) -> None:
    files = corpus.files()
    watcher.begin(f"reading {corpus.name}", sum(path.stat().st_size for path in files))
    ends, digests, skipped, replaced = array("q"), array("Q"), Counter[str](), 0
    content = hashlib.blake2b(digest_size=16)
    with (folder / "text.bin").open("wb") as file:
        for path in files:
            start, marks = file.tell(), 0
            digest = hashlib.blake2b(digest_size=16)
            try:
                for piece in corpus.read(path):
                    data = piece.encode(errors="replace")
                    file.write(data)
                    digest.update(data)
                    marks += piece.count("\N{REPLACEMENT CHARACTER}")
                    watcher.tick(len(data))
                if file.tell() == start:
                    raise Skipped("empty")
            except Skipped as reason:
                skipped[str(reason)] += 1
                file.seek(start)
                file.truncate()
            else:
                ends.append(file.tell())
                digests.append(int.from_bytes(digest.digest()[:8]))
                content.update(digest.digest())
                replaced += marks
        file.flush()
        os.fsync(file.fileno())
    if not ends:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(skipped.items()))
        raise ConfigurationError(f"corpus: {corpus.name} has no text: of its {len(files)} files, {reasons}.")
    np.save(folder / "digests.npy", np.array(digests, np.uint64))
    about = {
        "corpus": corpus.name,
        "content": content.hexdigest(),
        "files": len(files),
        "documents": len(ends),
        "bytes": ends[-1],
        **{f"skipped_{re.sub('[^a-z0-9]+', '_', reason)}": n for reason, n in sorted(skipped.items())},
        "replacement_characters": replaced,
    }
    _write_ends(folder, ends, about, "text.bin", np.uint8)


def _write_tokens(text: Documents, tokenizer: Tokenizer, folder: Path, watcher: Watcher) -> None:
    kind = np.min_scalar_type(len(tokenizer.vocabulary) - 1)
    watcher.begin("cutting the text into tokens", int(text.ends[-1]))
    ends, cuts, total = array("q"), 0, 0
    with (folder / "tokens.bin").open("wb") as file:
        for document in range(len(text)):
            for piece, within in pieces_of(text.of(document)):
                ids = tokenizer.encode(piece)
                file.write(ids.astype(kind).tobytes())
                total, cuts = total + len(ids), cuts + within
                watcher.tick(len(piece))
            ends.append(total)
        file.flush()
        os.fsync(file.fileno())
    about = text.about | {"tokens": total, "words_cut": cuts}
    _write_ends(folder, ends, about, "tokens.bin", kind)


def _write_ends(folder: Path, ends: array[int], about: dict[str, Any], name: str, kind: Any) -> None:
    np.save(folder / "ends.npy", np.array(ends, np.int64))
    kind = np.dtype(kind)
    about = {"file": name, "kind": kind.name, "size": ends[-1] * kind.itemsize, "counts": about}
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def _is_whole(folder: Path) -> bool:
    """Whether the file of ids is as long as it was when it was written."""
    try:
        about = json.loads((folder / "about.json").read_text())
        return (folder / about["file"]).stat().st_size == about["size"]
    except (OSError, ValueError, KeyError):
        return False


def _opened(folder: Path, digests: NDArray[np.uint64]) -> Documents:
    about = json.loads((folder / "about.json").read_text())
    tokens = np.memmap(folder / about["file"], about["kind"], mode="r")
    return Documents(tokens, np.load(folder / "ends.npy"), digests, about["counts"])
