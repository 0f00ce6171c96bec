"""The first 10^8 bytes of an English Wikipedia of 2006: what models of characters have been compared on since.

Its parts are stretches, as everybody cuts them: 90 million bytes for training, 5 for validation and 5 for the test.
Mahoney, "Large Text Compression Benchmark", 2006, mattmahoney.net/dc/textdata.html.
"""

from __future__ import annotations

from lcbench.corpus.cache import cache_directory
from lcbench.corpus.text_files import TextFiles
from lcbench.errors import ConfigurationError


class Enwik8(TextFiles):
    """One file, and one document a part.

    Args:
        path: of the file; null: ``datasets/enwik8/enwik8`` in the cache.
        validation: see ``Corpus``.
        test: see ``Corpus``.

    Raises:
        ConfigurationError: if it is not there.
    """

    def __init__(self, *, path: str | None = None, validation: float = 0.05, test: float = 0.05) -> None:
        place = cache_directory() / "datasets" / "enwik8" / "enwik8"
        if path is None and not place.is_file():
            raise ConfigurationError(
                f"corpus=enwik8: there is no {place}; unpack https://mattmahoney.net/dc/enwik8.zip there, or set "
                "corpus.path to the file."
            )
        super().__init__(path=path or str(place), validation=validation, test=test, split="stretches")
