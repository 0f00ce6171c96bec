"""The standard library of the Python that runs: some 30 MB of code, in files of up to hundreds of kilobytes.

It is on every machine and needs no network. What it holds differs between versions of Python: a record says which.
"""

from __future__ import annotations

import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from lcbench.corpus.base import FileCorpus, Skipped, Split, decoded, files_below
from lcbench.errors import ConfigurationError

#: what lies in the folder of the standard library and is no part of it
_OTHERS = {"site-packages", "dist-packages", "__pycache__"}


class PythonStdlib(FileCorpus):
    """Every ``.py`` file of the standard library, in the encoding that it declares.

    Args:
        validation: see ``Corpus``.
        test: see ``Corpus``.
        split: see ``Corpus``.

    Raises:
        ConfigurationError: if it is not installed as files.
    """

    def __init__(self, *, validation: float = 0.05, test: float = 0.05, split: Split = "auto") -> None:
        super().__init__(validation=validation, test=test, split=split)
        if not next(self.root.glob("*.py"), None):
            raise ConfigurationError(
                f"corpus=python_stdlib: {self.root} holds no .py file; the closest is corpus=text_files."
            )

    @property
    def name(self) -> str:
        return f"standard library of Python {platform.python_version()}"

    @property
    def root(self) -> Path:
        return Path(sysconfig.get_paths()["stdlib"])

    def files(self) -> list[Path]:
        return [path for path in files_below(self.root, _OTHERS.__contains__) if path.suffix == ".py"]

    def read(self, path: Path) -> Iterator[str]:
        """See ``FileCorpus.read``; bytes that are no text, as some of the library's tests have, are replaced."""
        try:
            with path.open("rb") as file:
                encoding, _ = tokenize.detect_encoding(file.readline)
        except SyntaxError:
            # a test of what Python does with a wrong declaration
            encoding = "utf-8"
        except OSError:
            raise Skipped("unreadable") from None
        return decoded(path, encoding, marked=True, strict=False)
