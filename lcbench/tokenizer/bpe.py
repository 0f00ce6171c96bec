"""Byte-pair encoding: the merges that shorten the training text most, over bytes, so that any text can be said.

Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, arXiv 1508.07909.
Over bytes, with GPT-2's rule of what a word is: Radford et al., "Language Models are Unsupervised Multitask Learners",
2019. Training and encoding are those of the ``tokenizers`` package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcbench.corpus.base import Corpus
from lcbench.corpus.cache import cache_directory, made_once
from lcbench.corpus.documents import TRAIN, Unwatched, parts_of, pieces_of, text_of
from lcbench.errors import ConfigurationError


class BPE:
    """Byte-pair encoding, trained on the training part of the corpus when it is first needed, and kept.

    Args:
        corpus: what it is trained on.
        size: of the vocabulary; less where the text has no more pairs that come twice.

    Raises:
        ConfigurationError: for a size without room for the 256 bytes, or without the ``tokenizers`` package.
    """

    def __init__(self, corpus: Corpus, *, size: int = 4096) -> None:
        if size < 257:
            raise ConfigurationError(
                f"tokenizer.size={size} has no room for the 256 bytes and a pair; the least is 257."
            )
        try:
            import tokenizers
        except ImportError:
            raise ConfigurationError(
                "tokenizer=bpe needs the tokenizers package: pip install 'lcbench[bpe]'; the closest without is "
                "tokenizer=bytes."
            ) from None
        self.corpus, self.size = corpus, size
        self._package = tokenizers

    @cached_property
    def _trained(self) -> Any:
        text = text_of(self.corpus, Unwatched())
        learned_from = f"{text.about['content']}-{self.corpus.validation}-{self.corpus.test}-{self.size}"
        digest = hashlib.blake2b(learned_from.encode(), digest_size=16).hexdigest()
        place = made_once(cache_directory() / "bpe" / digest, self._train, lambda it: (it / "tokenizer.json").exists())
        return self._package.Tokenizer.from_file(str(place / "tokenizer.json"))

    def _train(self, folder: Path) -> None:
        tokenizer = self._package.Tokenizer(self._package.models.BPE())
        tokenizer.pre_tokenizer = self._package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = self._package.trainers.BpeTrainer(
            vocab_size=self.size,
            min_frequency=2,
            initial_alphabet=self._package.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self._training_text(), trainer)
        tokenizer.save(str(folder / "tokenizer.json"))

    def _training_text(self) -> Iterator[str]:
        text = text_of(self.corpus, Unwatched())
        for document in parts_of(text, self.corpus)[TRAIN]:
            for piece, _ in pieces_of(text.of(int(document))):
                yield piece

    @cached_property
    def identity(self) -> str:
        """See ``Tokenizer.identity``."""
        return "bpe-" + hashlib.blake2b(self._trained.to_str().encode(), digest_size=16).hexdigest()

    @cached_property
    def _bytes(self) -> list[bytes]:
        """What each id stands for."""
        byte_of = {character: byte for byte, character in enumerate(_characters())}
        count = self._trained.get_vocab_size()
        return [bytes(byte_of[c] for c in self._trained.id_to_token(i)) for i in range(count)]

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """See ``Tokenizer.vocabulary``."""
        return tuple(token.decode(errors="replace") for token in self._bytes)

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        """See ``Tokenizer.byte_lengths``."""
        return np.array([len(token) for token in self._bytes])

    def encode(self, text: str) -> NDArray[np.int64]:
        """See ``Tokenizer.encode``."""
        return np.array(self._trained.encode(text).ids, np.int64)

    def to_bytes(self, ids: NDArray[np.int64]) -> bytes:
        """See ``Tokenizer.to_bytes``."""
        known = self._bytes
        return b"".join(known[i] for i in ids.tolist())

    def decode(self, ids: NDArray[np.int64]) -> str:
        """See ``Tokenizer.decode``."""
        return self.to_bytes(ids).decode(errors="replace")


def _characters() -> list[str]:
    """The character that stands for each byte in GPT-2's files: itself where it can be seen, else one from 256 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + hidden.index(byte)) for byte in range(256)]
