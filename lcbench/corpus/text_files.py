"""Text files of one's own: a folder, or all that a pattern matches; a document a file."""

from __future__ import annotations

import codecs
import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lcbench.corpus.base import FileCorpus, Split, decoded, files_below, near
from lcbench.errors import ConfigurationError, closest

#: for a message only: the names of encodings that people mean
_ENCODINGS = ("ascii", "cp1252", "gb18030", "latin-1", "shift_jis", "utf-8", "utf-16", "utf-32")


class TextFiles(FileCorpus):
    """Every file in a folder, however deep, but those whose name or folder begins with a dot; or the files that a
    pattern matches.

    Files with zero bytes near their beginning are no text: they are left out and counted, as are empty ones and those
    that cannot be opened.

    Args:
        path: a folder, a file, or a pattern with ``*``, ``?`` or ``**`` (any folders).
        encoding: of files that do not begin with a byte order mark.
        bad_bytes: what happens to a file with bytes that are no text in its encoding: each becomes U+FFFD and is
            counted (``replace``), or the file is left out and counted (``skip``).
        validation: see ``Corpus``.
        test: see ``Corpus``.
        split: see ``Corpus``.

    Raises:
        ConfigurationError: if there is no such file, or no such encoding.
    """

    def __init__(
        self,
        *,
        path: str,
        encoding: str = "utf-8",
        bad_bytes: Literal["replace", "skip"] = "replace",
        validation: float = 0.05,
        test: float = 0.05,
        split: Split = "auto",
    ) -> None:
        super().__init__(validation=validation, test=test, split=split)
        try:
            b"a".decode(codecs.lookup(encoding).name, "replace")
        except LookupError:
            hint = closest(encoding, _ENCODINGS)
            raise ConfigurationError(f"corpus.encoding={encoding}: no such encoding of text; {hint}") from None
        self.path, self.encoding, self.bad_bytes = path, encoding, bad_bytes
        if not self._is_pattern and not Path(path).exists():
            raise ConfigurationError(f"corpus.path={path}: there is no such folder or file; {near(path)}")
        if not self.files():
            what = "matches no file" if self._is_pattern else "holds no file"
            raise ConfigurationError(
                f"corpus.path={path} {what}; write a folder with text files, or a pattern such as 'books/**/*.txt'."
            )

    @property
    def _is_pattern(self) -> bool:
        return not Path(self.path).exists() and glob.has_magic(self.path)

    @property
    def name(self) -> str:
        return self.path

    @property
    def root(self) -> Path:
        return Path.cwd() if self._is_pattern else Path(self.path).resolve()

    @property
    def reading(self) -> str:
        return f"{codecs.lookup(self.encoding).name} {self.bad_bytes}"

    def files(self) -> list[Path]:
        if self._is_pattern:
            found = (Path(name) for name in glob.glob(self.path, recursive=True))  # noqa: PTH207 also absolute patterns
            return sorted(path for path in found if path.is_file())
        if self.root.is_file():
            return [self.root]
        return files_below(self.root, lambda name: name.startswith("."))

    def read(self, path: Path) -> Iterator[str]:
        """See ``FileCorpus.read``."""
        return decoded(path, self.encoding, marked=True, strict=self.bad_bytes == "skip")
