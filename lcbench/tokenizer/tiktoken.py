"""OpenAI's byte-pair encodings, such as ``cl100k_base``, by the ``tiktoken`` package.

An encoding is a list of byte strings by rank and a pattern of what a word is. The lists are files that tiktoken
downloads once; a list of one's own in the same format is a file too.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcbench.errors import ConfigurationError, closest
from lcbench.tokenizer.base import Names, Table

#: what a word is in cl100k_base
_WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)

#: where tiktoken has its lists from, and the list of an encoding that shares another's
_LISTS = "https://openaipublic.blob.core.windows.net/encodings"
_SHARED = {"p50k_edit": "p50k_base", "o200k_harmony": "o200k_base"}

#: names of the same ids from other files
_SAME = {"gpt2": "r50k_base"}


class Tiktoken(Table):
    """An encoding that tiktoken knows, or a file of one.

    Special tokens such as ``<|endoftext|>`` are text where a text has them. That one stands before documents where a
    task wants a token there.

    Args:
        name: such as ``cl100k_base``, or the path of a file with a byte string in base 64 and its rank a line.
        words: the pattern that parts words, for a file; null: that of cl100k_base.

    Raises:
        ConfigurationError: without the ``tiktoken`` package, for a name that it does not know, or a list that is not
            on this machine and cannot be downloaded.
    """

    def __init__(self, *, name: str = "cl100k_base", words: str | None = None) -> None:
        try:
            self._package = import_module("tiktoken")
        except ImportError:
            raise ConfigurationError(
                "tokenizer=tiktoken needs the tiktoken package: pip install 'lcbench[tiktoken]'; the closest without "
                "is tokenizer=bytes."
            ) from None
        if Path(name).is_file():
            self._encoding = self._of_file(Path(name), words or _WORDS)
        else:
            self._encoding = self._known(name)
        self.begin = self._encoding.eot_token if "<|endoftext|>" in self._encoding.special_tokens_set else None

    def _of_file(self, path: Path, words: str) -> Any:
        try:
            # tiktoken's own reader keeps what it read of a path, whatever becomes of the file
            pairs = (line.split() for line in path.read_bytes().splitlines() if line)
            ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
            return self._package.Encoding(path.stem, pat_str=words, mergeable_ranks=ranks, special_tokens={})
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ConfigurationError(f"tokenizer.name={path} is no list of byte pairs: {reason}.") from None

    def _known(self, name: str) -> Any:
        known = self._package.list_encoding_names()
        if name not in known:
            raise ConfigurationError(f"tokenizer.name={name}: no such file or encoding; {closest(name, known)}")
        name = _SAME.get(name, name)
        try:
            return self._package.get_encoding(name)
        except Exception as error:
            # whatever stands between this machine and the list
            address = f"{_LISTS}/{_SHARED.get(name, name)}.tiktoken"
            folder = (
                os.environ.get("TIKTOKEN_CACHE_DIR")
                or os.environ.get("DATA_GYM_CACHE_DIR")
                or str(Path(tempfile.gettempdir()) / "data-gym-cache")
            )
            place = Path(folder, hashlib.sha1(address.encode()).hexdigest())
            raise ConfigurationError(
                f"tokenizer.name={name}: its list is not on this machine and cannot be downloaded "
                f"({type(error).__name__}); save {address} as {place} (TIKTOKEN_CACHE_DIR=FOLDER keeps it elsewhere)."
            ) from None

    @cached_property
    def known(self) -> Sequence[bytes]:
        """See ``Table.known``; special tokens and numbers without a token stand for nothing."""
        found = [b""] * self._encoding.n_vocab
        for token in self._encoding._mergeable_ranks.values():
            found[token] = self._encoding.decode_single_token_bytes(token)
        return found

    @cached_property
    def vocabulary(self) -> Sequence[str]:
        """See ``Tokenizer.vocabulary``."""
        return Names(self._encoding.n_vocab, lambda: [token.decode(errors="replace") for token in self.known])

    @cached_property
    def identity(self) -> str:
        """See ``Tokenizer.identity``."""
        digest = hashlib.blake2b(self._encoding._pat_str.encode(), digest_size=16)
        for token in self.known:
            digest.update(len(token).to_bytes(4) + token)
        return f"tiktoken-{digest.hexdigest()}"

    def encode(self, text: str) -> NDArray[np.int64]:
        """See ``Tokenizer.encode``."""
        return np.array(self._encoding.encode_ordinary(text), np.int64)
