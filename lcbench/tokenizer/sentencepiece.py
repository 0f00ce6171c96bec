"""A SentencePiece model, such as LLaMA's ``tokenizer.model``, by the ``sentencepiece`` package.

Kudo and Richardson, "SentencePiece: A simple and language independent subword tokenizer and detokenizer for Neural
Text Processing", EMNLP 2018, arXiv 1808.06226. What a model puts in front of a text, a space, is left out, and white
space stays as it is, so that a document is its tokens and no more, wherever it is cut. A model without bytes for what
it does not know, or with rules that change characters, still loses something: that is found out when a text is cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lcbench.errors import ConfigurationError
from lcbench.tokenizer.base import Lossy, Names, Table, closed

#: the character that stands for a space
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class SentencePiece(Table):
    """A model in a file.

    Args:
        path: of the file.
        lossy: see ``tokenizer/huggingface.py``.

    Raises:
        ConfigurationError: without the ``sentencepiece`` package, or for a file that is no model.
    """

    def __init__(self, *, path: str, lossy: Lossy = "refuse") -> None:
        try:
            package, models = import_module("sentencepiece"), import_module("sentencepiece.sentencepiece_model_pb2")
        except ImportError:
            raise ConfigurationError(
                "tokenizer=sentencepiece needs the sentencepiece package: pip install 'lcbench[huggingface]'; the "
                "closest without is tokenizer=bpe."
            ) from None
        self.lossy = lossy == "count"
        model = models.ModelProto()
        try:
            model.ParseFromString(Path(path).read_bytes())
            model.normalizer_spec.add_dummy_prefix = False
            model.normalizer_spec.remove_extra_whitespaces = False
            self._model = model.SerializeToString(deterministic=True)
            self._processor = package.SentencePieceProcessor(model_proto=self._model)
        except Exception as error:
            # what is wrong with a file is said by whatever meets it first
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ConfigurationError(f"tokenizer.path={path} is no SentencePiece model: {reason}.") from None
        begin = self._processor.bos_id()
        self.begin = begin if begin >= 0 else None
        self.unknown = self._processor.unk_id()

    @cached_property
    def known(self) -> Sequence[bytes]:
        """See ``Table.known``; control tokens and the unknown one stand for nothing."""
        model = self._processor
        found = []
        for number in range(model.vocab_size()):
            piece = model.id_to_piece(number)
            if model.is_byte(number):
                found.append(bytes.fromhex(piece[3:5]))
            elif model.is_control(number) or model.is_unknown(number) or model.is_unused(number):
                found.append(b"")
            else:
                found.append(piece.replace(_SPACE, " ").encode())
        return found

    @cached_property
    def vocabulary(self) -> Sequence[str]:
        """See ``Tokenizer.vocabulary``."""
        size = self._processor.vocab_size()
        return Names(size, lambda: [token.decode(errors="replace") for token in self.known])

    @cached_property
    def identity(self) -> str:
        """See ``Tokenizer.identity``."""
        digest = hashlib.blake2b(self._model + str(self.lossy).encode(), digest_size=16)
        return f"sentencepiece-{digest.hexdigest()}"

    def encode(self, text: str) -> NDArray[np.int64]:
        """See ``Tokenizer.encode``."""
        return np.array(self._processor.encode(text), np.int64)

    def aligned(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See ``Tokenizer.aligned``."""
        pieces = self._processor.encode(text, return_type="proto").pieces
        ends = np.array([piece.end for piece in pieces], np.int64)
        return np.array([piece.id for piece in pieces], np.int64), closed(ends, len(text.encode()))
