"""Any tokenizer of the Hugging Face hub that has a ``tokenizer.json``, by the ``tokenizers`` package.

What such a file puts around a text is left out: special tokens, and the space that some put in front of it, so that a
document is its tokens and no more, wherever it is cut. Most of these tokenizers lose nothing then (byte-level ones,
and those of words with a byte for what they do not know). Others change the text before they cut it (small letters,
compatibility characters), drop white space or say ``<unk>``: that is found out when a text is cut.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcbench.corpus.cache import cache_directory
from lcbench.errors import ConfigurationError, closest
from lcbench.tokenizer.base import Lossy, Names, Table, byte_characters, bytes_of_characters, closed

#: what a token that stands before a text is called, the likeliest first
_BEGINS = ("<s>", "<bos>", "<|begin_of_text|>", "[BOS]", "<|endoftext|>", "[CLS]")

#: the character that stands for a space in tokenizers of whole text
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class HuggingFace(Table):
    """A tokenizer by name or path.

    Args:
        name: of a model on the hub, such as ``gpt2``; or a folder or a file. For machines without a network the file
            may lie in ``<cache>/tokenizers/OWNER--NAME``.
        lossy: a tokenizer that does not give back a text as it was is refused (``refuse``), or scored by the bytes of
            the original that each token stands for (``count``); a record then says how many tokens are unknown and
            how many pieces of text, of up to a megabyte, are not restored. Where it says less than the text does, its
            bits per byte are less than the text's.
        begin: the token that stands before documents where a task wants one; null: the one such tokenizers have.

    Raises:
        ConfigurationError: without the ``tokenizers`` package, for a tokenizer that cannot be found or read, or has no
            such token.
    """

    def __init__(self, *, name: str, lossy: Lossy = "refuse", begin: str | None = None) -> None:
        try:
            self._package = import_module("tokenizers")
        except ImportError:
            raise ConfigurationError(
                "tokenizer=huggingface needs the tokenizers package: pip install 'lcbench[huggingface]'; the closest "
                "without is tokenizer=bytes."
            ) from None
        self.lossy = lossy == "count"
        path = _found(name)
        try:
            self._file = _bare(json.loads(path.read_text()))
            self._tokenizer = self._package.Tokenizer.from_str(json.dumps(self._file))
        except Exception as error:
            # what is wrong with a file is said by whatever meets it first
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ConfigurationError(f"tokenizer.name={name}: {path} is no tokenizer: {reason}.") from None
        # a text that has the name of a special token has its letters
        self._tokenizer.encode_special_tokens = True
        names = [token["content"] for token in self._file.get("added_tokens", [])]
        if begin is not None and self._tokenizer.token_to_id(begin) is None:
            raise ConfigurationError(
                f"tokenizer.begin={begin}: {name} has no such token; {closest(begin, names) if names else 'null.'}"
            )
        chosen = begin or next((word for word in _BEGINS if word in names), None)
        self.begin = None if chosen is None else self._tokenizer.token_to_id(chosen)
        model = self._file["model"]
        unknown = model.get("unk_token")
        self.unknown = model.get("unk_id") if unknown is None else self._tokenizer.token_to_id(unknown)

    @property
    def _size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def known(self) -> Sequence[bytes]:
        """See ``Table.known``; special tokens and numbers without a token stand for nothing."""
        special = {token["content"] for token in self._file.get("added_tokens", []) if token["special"]}
        added = {token["content"] for token in self._file.get("added_tokens", [])}
        parts = [self._file.get(part) for part in ("decoder", "pre_tokenizer", "normalizer")]
        words = json.dumps(parts, ensure_ascii=False)
        space = " " if '"Metaspace"' in words or _SPACE in words else _SPACE
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        fallback = bool(self._file["model"].get("byte_fallback"))
        found = [b""] * self._size
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if token in special:
                continue
            if token in added:
                found[number] = token.encode()
            elif '"ByteLevel"' in words and all(character in byte_of for character in token):
                found[number] = bytes(byte_of[character] for character in token)
            elif fallback and (byte := re.fullmatch(r"<0x([0-9A-F]{2})>", token)):
                found[number] = bytes.fromhex(byte[1])
            else:
                found[number] = token.replace(_SPACE, space).encode()
        return found

    @cached_property
    def vocabulary(self) -> Sequence[str]:
        """See ``Tokenizer.vocabulary``."""
        return Names(self._size, lambda: [token.decode(errors="replace") for token in self.known])

    @cached_property
    def identity(self) -> str:
        """See ``Tokenizer.identity``."""
        words = json.dumps(self._file, sort_keys=True) + str(self.lossy)
        return "huggingface-" + hashlib.blake2b(words.encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> NDArray[np.int64]:
        """See ``Tokenizer.encode``."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def aligned(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See ``Tokenizer.aligned``."""
        said = self._tokenizer.encode(text, add_special_tokens=False)
        ends = bytes_of_characters(text, [end for _, end in said.offsets])
        return np.array(said.ids, np.int64), closed(ends, len(text.encode()))


def _found(name: str) -> Path:
    """The file of a tokenizer.

    Raises:
        ConfigurationError: if it is not on this machine and cannot be downloaded.
    """
    path, place = Path(name), cache_directory() / "tokenizers" / name.replace("/", "--")
    if path.is_file():
        return path
    for folder in (path, place):
        if (folder / "tokenizer.json").is_file():
            return folder / "tokenizer.json"
    if path.is_dir():
        model = path / "tokenizer.model"
        remedy = (
            f"tokenizer=sentencepiece tokenizer.path={model}" if model.exists() else "the folder of another tokenizer"
        )
        raise ConfigurationError(f"tokenizer.name={name} has no tokenizer.json; the closest that works is {remedy}.")
    try:
        return Path(import_module("huggingface_hub").hf_hub_download(name, "tokenizer.json"))
    except Exception as error:
        # whatever stands between this machine and the hub
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ConfigurationError(
            f"tokenizer.name={name} cannot be read from the hub ({reason.rstrip('.')}); without a network, download "
            f"tokenizer.json of https://huggingface.co/{name} into {place}."
        ) from None


def _bare(file: dict[str, Any]) -> dict[str, Any]:
    """The file without what it puts around a text."""
    return {
        **file,
        "truncation": None,
        "padding": None,
        "post_processor": None,
        "normalizer": _without_prefix(file.get("normalizer")),
        "pre_tokenizer": _without_prefix(file.get("pre_tokenizer")),
    }


def _without_prefix(step: dict[str, Any] | None) -> dict[str, Any] | None:
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        return {**step, key: [kept for part in step[key] if (kept := _without_prefix(part)) is not None]}
    changed = dict(step)
    if "prepend_scheme" in step:
        changed["prepend_scheme"] = "never"
    if "add_prefix_space" in step:
        changed["add_prefix_space"] = False
    return changed
