"""A corpus as arrays on the disk: read once, cut into tokens once, and mapped into memory from then on.

    text/<stamp>/                  text.bin    all documents one after another, UTF-8
                                   ends.npy, digests.npy, parts.npy, names.txt    where each ends, the hash of its
                                               text, its part where the source says so, where a person finds it
                                   about.json  counts: files, bytes, and what was left out or replaced
    tokens/<content>-<tokenizer>/  tokens.bin  the same documents as ids, in the smallest unsigned integers
                                   bytes.bin   where a tokenizer loses something: the byte of the text at which each
                                               token ends
                                   ends.npy, about.json

in the cache (``cache_directory``). The stamp changes with the files, the content with the text, so a corpus that was
changed is read again, and one that was only copied or moved is not cut into tokens again. Bytes need no second file:
they are the text. Memory does not depend on the size of the corpus, but for some 20 bytes a document.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lcbench.corpus.base import BLOCK, PARTS, Corpus, Skipped
from lcbench.corpus.cache import cache_directory, made_once
from lcbench.corpus.split import split_up
from lcbench.errors import ConfigurationError
from lcbench.tokenizer.base import Tokenizer

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
        parts: which part its source says that each is of, an index of ``PARTS``, uint8 ``[documents]``.
        about: what a record says of them.
        folder: of the text they are from.
        sources: which document of that folder each is, or is a stretch of, int64 ``[documents]``; None: each itself.
        text: the same documents as bytes; None: these are.
        bytes_to: the byte of all text at which each token ends, int64 ``[tokens]``, mapped; None: no token stands for
            anything but its own bytes.
    """

    tokens: NDArray[Any]
    ends: NDArray[np.int64]
    digests: NDArray[np.uint64]
    parts: NDArray[np.uint8]
    about: dict[str, Any]
    folder: Path
    sources: NDArray[np.int64] | None = None
    text: Documents | None = None
    bytes_to: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, ``[documents]``."""
        return np.diff(self.ends, prepend=0)

    def start(self, document: int) -> int:
        """The first token of a document."""
        return int(self.ends[document - 1]) if document else 0

    def of(self, document: int) -> NDArray[Any]:
        """The ids of a document, ``[time]``."""
        return self.tokens[self.start(document) : self.ends[document]]

    def original(self, document: int, start: int, stop: int) -> tuple[bytes, bytes]:
        """The bytes of the text that tokens ``start`` to ``stop - 1`` of a document stand for where a tokenizer loses
        something, after the last byte before them, if there is one."""
        assert self.bytes_to is not None
        assert self.text is not None
        first, begin = self.start(document), self.text.start(document)
        reached = int(self.bytes_to[first + start - 1]) if start else begin
        text, last = self.text.tokens, int(self.bytes_to[first + stop - 1])
        return text[max(begin, reached - 1) : reached].tobytes(), text[reached:last].tobytes()

    def names(self, documents: Sequence[int]) -> list[str]:
        """Where a person finds each of ``documents``."""
        wanted = [int(number if self.sources is None else self.sources[number]) for number in documents]
        found = dict.fromkeys(wanted, "")
        with (self.folder / "names.txt").open() as file:
            for number, line in enumerate(file):
                if number in found:
                    found[number] = json.loads(line)
        return [found[number] for number in wanted]


def text_of(corpus: Corpus, watcher: Watcher) -> Documents:
    """The text of a corpus, a token a byte, in the documents that its parts are made of.

    Raises:
        ConfigurationError: if it has no text, or the cache cannot be written.
    """
    place = cache_directory() / "text" / corpus.stamp()
    made_once(place, lambda folder: _write_text(corpus, folder, watcher), _is_whole)
    digests, parts = np.load(place / "digests.npy"), np.load(place / "parts.npy")
    return split_up(Documents(*_opened(place), digests, parts, _about(place), place), corpus)


def tokens_of(corpus: Corpus, tokenizer: Tokenizer, watcher: Watcher) -> Documents:
    """The documents of a corpus in the tokens of ``tokenizer``.

    Raises:
        ConfigurationError: if it has no text, the tokenizer loses some of it or has an id that is no name's, or the
            cache cannot be written.
    """
    text = text_of(corpus, watcher)
    tokenizer.prepare(watcher)
    if tokenizer.identity == "bytes":
        return text
    place = cache_directory() / "tokens" / f"{text.about['content']}-{tokenizer.identity}"
    made_once(place, lambda folder: _write_tokens(text, tokenizer, folder, watcher), _is_whole)
    tokens, ends = _opened(place)
    lost = place / "bytes.bin"
    return replace(
        text,
        tokens=tokens,
        ends=ends,
        about=text.about | _about(place),
        text=text,
        bytes_to=np.memmap(lost, np.int64, mode="r") if lost.exists() else None,
    )


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
    watcher.begin(f"reading {corpus.name}", corpus.size)
    ends, digests, parts, skipped = array("q"), array("Q"), bytearray(), Counter[str]()
    items, replaced = 0, 0
    content = hashlib.blake2b(digest_size=16)
    scratch = folder / "scratch"
    scratch.mkdir()
    with (folder / "text.bin").open("wb") as file, (folder / "names.txt").open("w") as names:
        for document in corpus.documents(scratch):
            items += 1
            start, marks = file.tell(), 0
            digest = hashlib.blake2b(digest_size=16)
            try:
                for piece in document.pieces:
                    data = piece.encode(errors="replace")
                    file.write(data)
                    digest.update(data)
                    marks += piece.count("\N{REPLACEMENT CHARACTER}")
                    watcher.tick(len(data))
                if file.tell() == start:
                    raise Skipped("empty")
                if file.tell() - start < corpus.min_document:
                    raise Skipped("short")
            except Skipped as reason:
                skipped[str(reason)] += 1
                file.seek(start)
                file.truncate()
            else:
                ends.append(file.tell())
                digests.append(int.from_bytes(digest.digest()[:8]))
                parts.append(PARTS.index(document.part))
                names.write(json.dumps(document.name) + "\n")
                content.update(digest.digest())
                replaced += marks
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(scratch)
    if not ends:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(skipped.items())) or "there is nothing to read"
        raise ConfigurationError(f"corpus: {corpus.name} has no text: of its {items} {corpus.unit}, {reasons}.")
    np.save(folder / "digests.npy", np.array(digests, np.uint64))
    np.save(folder / "parts.npy", np.frombuffer(parts, np.uint8))
    about = {
        "corpus": corpus.name,
        "content": content.hexdigest(),
        corpus.unit: items,
        "documents": len(ends),
        "bytes": ends[-1],
        **{f"skipped_{re.sub('[^a-z0-9]+', '_', reason)}": n for reason, n in sorted(skipped.items())},
        "replacement_characters": replaced,
    }
    _write_ends(folder, ends, about, "text.bin", np.uint8)


def _write_tokens(text: Documents, tokenizer: Tokenizer, folder: Path, watcher: Watcher) -> None:
    most = len(tokenizer.vocabulary) - 1
    kind = np.min_scalar_type(most)
    watcher.begin("cutting the text into tokens", int(text.ends[-1]))
    ends, cuts, total, lost, unknown = array("q"), 0, 0, 0, 0
    counted = tokenizer.lossy
    with (folder / "tokens.bin").open("wb") as file, (folder / "bytes.bin").open("wb") as file_of_bytes:
        for document in range(len(text)):
            reached = text.start(document)
            for piece, within in pieces_of(text.of(document)):
                data = piece.encode()
                if counted:
                    ids, places = tokenizer.aligned(piece)
                    file_of_bytes.write((places + reached).tobytes())
                else:
                    ids = tokenizer.encode(piece)
                if len(ids) and int(ids.max()) > most:
                    raise ConfigurationError(
                        f"tokenizer: it made id {int(ids.max())}, and its vocabulary ends with {most}."
                    )
                said = tokenizer.to_bytes(ids)
                if said != data:
                    if not counted:
                        raise _loss(text, document, data, said)
                    lost += 1
                unknown += int((ids == tokenizer.unknown).sum()) if tokenizer.unknown is not None else 0
                file.write(ids.astype(kind).tobytes())
                total, cuts, reached = total + len(ids), cuts + within, reached + len(data)
                watcher.tick(len(data))
            if counted and total > (ends[-1] if ends else 0):
                # also what was lost of its end
                file_of_bytes.seek(-8, os.SEEK_CUR)
                file_of_bytes.write(np.int64(text.ends[document]).tobytes())
            ends.append(total)
        for each in (file, file_of_bytes):
            each.flush()
            os.fsync(each.fileno())
    about = {"tokens": total, "words_cut": cuts}
    if counted:
        about |= {"pieces_not_restored": lost, "unknown_tokens": unknown}
    else:
        (folder / "bytes.bin").unlink()
    _write_ends(folder, ends, about, "tokens.bin", kind)


def _loss(text: Documents, document: int, data: bytes, said: bytes) -> ConfigurationError:
    """The error for a tokenizer that does not give back what it was given."""
    place = next((i for i, (a, b) in enumerate(zip(data, said, strict=False)) if a != b), min(len(data), len(said)))
    there, instead = (part[max(0, place - 12) : place + 12].decode(errors="replace") for part in (data, said))
    return ConfigurationError(
        f"tokenizer: it loses text: of {text.names([document])[0]} it makes {instead!r} where there is {there!r}; "
        "tokenizer.lossy=count scores it all the same, by the bytes of the original, or take tokenizer=bpe."
    )


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


def _about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "about.json").read_text())["counts"]


def _opened(folder: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Ids and where each document ends."""
    about = json.loads((folder / "about.json").read_text())
    if not about["size"]:
        return np.empty(0, about["kind"]), np.load(folder / "ends.npy")
    return np.memmap(folder / about["file"], about["kind"], mode="r"), np.load(folder / "ends.npy")
