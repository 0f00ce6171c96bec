"""Any data set of the Hugging Face hub, or in its formats (parquet, JSON lines, text, compressed or not) on the disk.

Rows are read by the ``datasets`` package, one after another, and kept as the text of a corpus is: what was read once
is there without a network. A hub data set lies either on the hub or, for machines without a network, in
``<cache>/datasets/OWNER--NAME`` with the files and folders that its repository has.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import re
import struct
from array import array
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from lcbench.corpus.base import (
    BLOCK,
    TEST,
    TRAIN,
    VALIDATION,
    Corpus,
    Document,
    Skipped,
    Split,
    files_below,
    near,
    stamp_of,
)
from lcbench.corpus.cache import cache_directory
from lcbench.errors import ConfigurationError, closest
from lcbench.units import Length

Format = Literal["arrow", "csv", "json", "parquet", "text"]

#: what a file's name says of its format, whatever it is compressed with
_SUFFIXES: dict[str, Format] = {
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
}


class HuggingFace(Corpus):
    """Every row a document, or several rows one.

    Splits that the data set brings are the parts of the corpus. What it does not bring is cut out of training, by the
    shares ``validation`` and ``test``.

    Args:
        path: a data set of the hub, such as ``Salesforce/wikitext``; or a folder or a file.
        name: the data set's configuration.
        revision: of the hub's repository; what was read of another is not read again unless this is changed.
        format: of ``data_files``, where the repository or folder does not say.
        data_files: by split, patterns in the repository or folder, such as ``{train: train/*.jsonl.zst}``.
        data_dir: only what lies in this folder of the repository.
        train_split: the split to train on.
        validation_split: the split for validation; null: ``validation`` if there is one.
        test_split: the split for the test; null: ``test`` if there is one.
        text: the field that holds the text.
        streaming: read rows as they arrive, without a copy of the whole data set on this machine.
        rows: of each split, only the first so many; null: all.
        begins: an expression that the first row of a document matches, where rows are lines. It begins a document
            only between empty lines. Null: a row is a document.
        blank: what an empty row stands for, where rows are lines and the data set has lost the ends of empty ones.
        together: the field whose value is the same in all rows of a document, such as the repository of a file of
            code. They are brought together on the disk, documents in the order of a hash of the value.
        order: the field with the path that a row has in its document: rows are then in the order of a walk through its
            folders, each from beginning to end, what is in a folder in a random order that is the same everywhere.
        min_document: documents of fewer tokens are left out. Those of fewer bytes are not even kept, since no text has
            more tokens than bytes.
        words: words of a split as its publishers count them, such as ``{test: 6966499}``.
        words_from: where those counts are from, and whether that was verified.
        validation: see ``Corpus``.
        test: see ``Corpus``.
        split: see ``Corpus``.

    Raises:
        ConfigurationError: without the ``datasets`` package, for a folder or file that is not there, or options that
            exclude each other.
    """

    def __init__(
        self,
        *,
        path: str,
        name: str | None = None,
        revision: str | None = None,
        format: Format | None = None,
        data_files: dict[str, str] | None = None,
        data_dir: str | None = None,
        train_split: str = TRAIN,
        validation_split: str | None = None,
        test_split: str | None = None,
        text: str = "text",
        streaming: bool = True,
        rows: Length | None = None,
        begins: str | None = None,
        blank: str = "",
        together: str | None = None,
        order: str | None = None,
        min_document: Length = 1,
        words: dict[str, int] | None = None,
        words_from: str = "",
        validation: float = 0.05,
        test: float = 0.05,
        split: Split = "auto",
    ) -> None:
        super().__init__(validation=validation, test=test, split=split)
        try:
            self._package = import_module("datasets")
        except ImportError:
            raise ConfigurationError(
                "corpus=huggingface needs the datasets package: pip install 'lcbench[huggingface]'; the closest "
                "without is corpus=text_files."
            ) from None
        self.path, self.configuration, self.revision = path, name, revision
        self.format, self.data_files, self.data_dir = format, data_files, data_dir
        self.splits = {TRAIN: train_split, VALIDATION: validation_split, TEST: test_split}
        self.text, self.streaming, self.rows = text, streaming, rows
        self.blank, self.together, self.order = blank, together, order
        self.min_document, self.words_from = min_document, words_from
        # of part of a split nobody has counted the words
        self.words = words if words and rows is None and min_document == 1 else {}
        try:
            self.begins = None if begins is None else re.compile(begins)
        except re.error as error:
            raise ConfigurationError(f"corpus.begins={begins} is no expression: {error}.") from None
        if begins is not None and together is not None:
            raise ConfigurationError(
                f"corpus.begins={begins} and corpus.together={together} both say what is one document; drop one."
            )
        if order is not None and together is None:
            raise ConfigurationError(
                f"corpus.order={order} orders the rows of a document, and a row is one; set corpus.together as well."
            )
        for key, value in (("rows", rows), ("min_document", min_document)):
            if value is not None and value < 1:
                raise ConfigurationError(f"corpus.{key}={value} leaves nothing; the closest that works is 1.")
        if self._root is not None and not self._root.exists():
            raise ConfigurationError(
                f"corpus.path={path}: there is no such folder or file, nor can it be a data set of the hub, which is "
                f"OWNER/NAME; {near(path)}"
            )

    @property
    def _root(self) -> Path | None:
        """The folder or file on this disk, which may not be there; None: it is on the hub."""
        if Path(self.path).exists():
            return Path(self.path).resolve()
        if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", self.path):
            return Path(self.path)
        return self._place if self._place.is_dir() else None

    @property
    def _place(self) -> Path:
        """Where the files of a hub data set may be put."""
        return cache_directory() / "datasets" / self.path.replace("/", "--")

    @property
    def name(self) -> str:
        """See ``Corpus.name``."""
        return " ".join(filter(None, (self.path, self.configuration, self.data_dir)))

    @property
    def unit(self) -> str:  # type: ignore[override]
        """See ``Corpus.unit``."""
        return "rows" if self.begins is None and self.together is None else "groups_of_rows"

    def stamp(self) -> str:
        """See ``Corpus.stamp``: of a hub data set its name and revision, of files their names, sizes and times."""
        options = (
            *(self.path, self.configuration, self.revision, self.format, self.data_files, self.data_dir, self.splits),
            *(self.text, self.rows, self.begins and self.begins.pattern, self.blank, self.together, self.order),
            self.min_document,
        )
        root = self._root
        return stamp_of(f"{type(self).__qualname__} {root} {options}", [] if root is None else _files(root))

    def documents(self, scratch: Path) -> Iterator[Document]:
        """See ``Corpus.documents``."""
        builder = self._builder()
        for part, split in self._found(builder).items():
            rows = self._rows(builder, split)
            # what a split for training has may still be cut into parts
            given = None if part == TRAIN else part
            if self.begins is not None:
                yield from self._by_line(rows, split, given)
            elif self.together is not None:
                yield from self._brought_together(rows, given, scratch / part)
            else:
                for number, row in enumerate(rows):
                    yield Document(f"{split} {number}", self._pieces(row), given)

    def _builder(self) -> Any:
        """What ``datasets`` makes of the options."""
        root = self._root
        kind = self.format or _format_of([*(self.data_files or {}).values(), *map(str, _files(root) if root else ())])
        options: dict[str, Any] = {}
        if kind == "text":
            options |= {"keep_linebreaks": True} if self.begins else {"sample_by": "document"}
        if root is not None and root.is_file():
            options |= {"path": kind, "data_files": {self.splits[TRAIN]: str(root)}}
        elif self.data_files is not None:
            at = f"@{self.revision}" if self.revision else ""
            within = f"hf://datasets/{self.path}{at}" if root is None else root
            files = {split: f"{within}/{pattern}" for split, pattern in self.data_files.items()}
            options |= {"path": kind, "data_files": files}
        elif root is None:
            options = {"path": self.path, "name": self.configuration, "data_dir": self.data_dir}
            options["revision"] = self.revision
        elif (root / "README.md").exists() or not self.configuration:
            folder = root / (self.data_dir or "")
            options |= {"path": "text", "data_dir": str(folder)} if kind == "text" else {"path": str(folder)}
            options |= {"name": self.configuration} if self.configuration else {}
        else:
            # the page that says what a configuration is was not downloaded: it is most often the folder of that name
            folder = root / self.configuration
            folder = folder if folder.is_dir() else root
            options |= {"path": "text", "data_dir": str(folder)} if kind == "text" else {"path": str(folder)}
        if options["path"] is None:
            raise ConfigurationError(
                f"corpus.path={self.path}: names of files do not say their format; set corpus.format to one of "
                f"{', '.join(sorted(set(_SUFFIXES.values())))}."
            )
        try:
            return self._package.load_dataset_builder(**options)
        except Exception as error:
            # whatever stands between this machine and a data set
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> ConfigurationError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if self._root is not None:
            return ConfigurationError(f"corpus.path={self.path} cannot be read: {reason}.")
        what = ", ".join((self.data_files or {}).values()) or self.data_dir or self.configuration or "all files"
        return ConfigurationError(
            f"corpus.path={self.path} cannot be read from the hub ({reason}); without a network, download {what} of "
            f"https://huggingface.co/datasets/{self.path} into {self._place}, in folders as they are there."
        )

    def _found(self, builder: Any) -> dict[str, str]:
        """The split of each part that the data set has."""
        known = [str(split) for split in builder.config.data_files or builder.info.splits or ()]
        found = {}
        for part, split in self.splits.items():
            if split is None and part in known:
                found[part] = part
            elif split is not None:
                if split not in known:
                    raise ConfigurationError(
                        f"corpus.{part}_split={split}: {self.name} has no such split; {closest(split, known)}"
                    )
                found[part] = split
        return found

    def _rows(self, builder: Any, split: str) -> Iterator[dict[str, Any]]:
        number = 0
        try:
            if self.streaming:
                found = builder.as_streaming_dataset(split)
            else:
                builder.download_and_prepare()
                found = builder.as_dataset(split)
            for row in itertools.islice(found, self.rows):
                yield row
                number += 1
        except ConfigurationError:
            raise
        except Exception as error:
            if not number:
                raise self._unreadable(error) from None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ConfigurationError(
                f"corpus: reading {self.name} broke off after {number} rows of {split} ({reason}); the same command "
                "reads it again."
            ) from None

    def _value(self, row: dict[str, Any], key: str, field: str) -> str:
        if field not in row:
            raise ConfigurationError(
                f"corpus.{key}={field}: the rows of {self.name} have no such field; {closest(field, list(row))}"
            )
        return row[field]

    def _pieces(self, row: dict[str, Any]) -> Iterator[str]:
        text = self._value(row, "text", self.text)
        if not isinstance(text, str):
            raise Skipped("without text")
        yield from (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))

    def _by_line(self, rows: Iterator[dict[str, Any]], split: str, part: str | None) -> Iterator[Document]:
        """Documents of lines: each begins with one that matches, between empty ones."""
        number, after_empty, begun = 0, True, False
        lines = (self._value(row, "text", self.text) or "" for row in rows)

        def document(line_and_next: tuple[str, str]) -> int:
            nonlocal number, after_empty, begun
            assert self.begins is not None
            line, after = line_and_next
            if begun and after_empty and not after.strip() and self.begins.search(line):
                number += 1
            after_empty = not line.strip()
            # empty lines before the first document are its own
            begun = begun or not after_empty
            return number

        for _, group in itertools.groupby(itertools.pairwise(itertools.chain(lines, [""])), document):
            texts = (line for line, _ in group)
            first = next(texts)
            empty = []
            while not first.strip():
                empty.append(first)
                if (line := next(texts, None)) is None:
                    break
                first = line
            else:
                empty.append(first)
            yield Document(f"{split}: {first.strip()[:80]}", self._lines(empty, texts), part)

    def _lines(self, *parts: Iterable[str]) -> Iterator[str]:
        return (line or self.blank for line in itertools.chain(*parts))

    def _brought_together(self, rows: Iterator[dict[str, Any]], part: str | None, scratch: Path) -> Iterator[Document]:
        """Documents of rows that stand anywhere: written down as they come, then read by document."""
        assert self.together is not None
        groups, places = array("Q"), array("q")
        with scratch.open("wb+") as file:
            for row in rows:
                group = str(self._value(row, "together", self.together))
                path = str(self._value(row, "order", self.order)) if self.order else ""
                text = self._value(row, "text", self.text)
                if not isinstance(text, str):
                    yield Document(group, _without_text(), part)
                    continue
                groups.append(_hash(group))
                places.append(file.tell())
                parts = [part.encode(errors="replace") for part in (group, path, text)]
                file.write(_HEAD.pack(*map(len, parts)) + b"".join(parts))
            file.flush()
            keys, offsets = np.frombuffer(groups, np.uint64), np.frombuffer(places, np.int64)
            order = np.argsort(keys, kind="stable")
            ends = np.flatnonzero(np.diff(keys[order])) + 1 if len(order) else np.empty(0, np.int64)
            for members in np.split(order, ends) if len(order) else ():
                found = [(*_labels(file, int(offset)), int(offset)) for offset in offsets[members]]
                found.sort(key=lambda row: (row[0], _walk(row[1])))
                yield Document(found[0][0], _texts(file, [offset for _, _, offset in found]), part)


def _without_text() -> Iterator[str]:
    raise Skipped("rows without text")
    yield


#: bytes of the document's name, the path and the text of a row, before them
_HEAD = struct.Struct("<qqq")


def _labels(file: IO[bytes], offset: int) -> tuple[str, str]:
    """The document's name and the path of the row at ``offset``."""
    file.seek(offset)
    name, path, _ = _HEAD.unpack(file.read(_HEAD.size))
    return file.read(name).decode(), file.read(path).decode()


def _texts(file: IO[bytes], offsets: list[int]) -> Iterator[str]:
    """The texts of the rows at ``offsets``, in pieces."""
    for offset in offsets:
        file.seek(offset)
        name, path, size = _HEAD.unpack(file.read(_HEAD.size))
        place = offset + _HEAD.size + name + path
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, size, BLOCK):
            file.seek(place + start)
            yield decoder.decode(file.read(min(BLOCK, size - start)))


def _walk(path: str) -> list[int]:
    """What sorts paths like a walk through folders: whole folders one after another, those within one at random."""
    steps = path.split("/")
    return [_hash("/".join(steps[:depth])) for depth in range(1, len(steps) + 1)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest())


def _files(root: Path) -> list[Path]:
    return [root] if root.is_file() else files_below(root, lambda name: name.startswith("."))


def _format_of(names: Iterable[str]) -> Format | None:
    """What the first name that says it says of the format."""
    suffixes = (suffix for name in names for suffix in Path(name).suffixes[::-1])
    return next((_SUFFIXES[suffix] for suffix in suffixes if suffix in _SUFFIXES), None)
