"""Byte-pair encoding: the merges that shorten the training text most, over bytes, so that any text can be said.

Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, arXiv 1508.07909.
Over bytes, with GPT-2's rule of what a word is: Radford et al., "Language Models are Unsupervised Multitask Learners",
2019. Training and encoding are those of the ``tokenizers`` package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcbench.corpus.base import TRAIN, Corpus
from lcbench.corpus.cache import cache_directory, made_once
from lcbench.corpus.documents import Unwatched, Watcher, pieces_of, text_of
from lcbench.corpus.split import parts_of
from lcbench.errors import ConfigurationError
from lcbench.tokenizer.base import Names, Table, byte_characters


class BPE(Table):
    """Byte-pair encoding, trained on the training part of the corpus when it is first needed, and kept.

    How many ids there are is known before it is trained.

    Args:
        corpus: what it is trained on.
        size: of the vocabulary; where the text has too few pairs that come twice, the last ids stand for nothing.

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
        self._watcher: Watcher = Unwatched()

    def prepare(self, watcher: Watcher) -> None:
        """See ``Tokenizer.prepare``: reads the corpus and trains, unless it was done before."""
        self._watcher = watcher
        try:
            self._trained  # noqa: B018
        finally:
            self._watcher = Unwatched()

    @cached_property
    def _trained(self) -> Any:
        text = text_of(self.corpus, self._watcher)
        learned_from = text.digests[parts_of(text, self.corpus)[TRAIN]].tobytes() + str(self.size).encode()
        digest = hashlib.blake2b(learned_from, digest_size=16).hexdigest()
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
        numbers = parts_of(text, self.corpus)[TRAIN]
        self._watcher.begin(f"learning {self.size} byte pairs", int(text.lengths[numbers].sum()))
        for document in numbers:
            for piece, _ in pieces_of(text.of(int(document))):
                self._watcher.tick(len(piece.encode()))
                yield piece

    @cached_property
    def identity(self) -> str:
        """See ``Tokenizer.identity``."""
        return "bpe-" + hashlib.blake2b(self._trained.to_str().encode(), digest_size=16).hexdigest()

    @cached_property
    def known(self) -> Sequence[bytes]:
        """See ``Table.known``; ids that the text had no pair for stand for nothing."""
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        count = self._trained.get_vocab_size()
        found = [bytes(byte_of[c] for c in self._trained.id_to_token(i)) for i in range(count)]
        return found + [b""] * (self.size - count)

    @cached_property
    def vocabulary(self) -> Sequence[str]:
        """See ``Tokenizer.vocabulary``."""
        return Names(self.size, lambda: [token.decode(errors="replace") for token in self.known])

    def encode(self, text: str) -> NDArray[np.int64]:
        """See ``Tokenizer.encode``."""
        return np.array(self._trained.encode(text).ids, np.int64)
