"""Byte-pair encoding: nothing lost, trained on the training part alone, the same in pieces as whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lcbench.corpus.base import TRAIN
from lcbench.corpus.documents import Unwatched, text_of, tokens_of
from lcbench.corpus.split import parts_of
from lcbench.corpus.text_files import TextFiles
from lcbench.errors import ConfigurationError

pytest.importorskip("tokenizers")

from lcbench.tokenizer.bpe import BPE

TEXTS = [f"the cat number {n} sat on the mat, and the hat of cat {n * n} said ünïcödé 🙂\n\n" * 5 for n in range(12)]


@pytest.fixture
def corpus(tmp_path: Path) -> TextFiles:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    return TextFiles(path=str(tmp_path))


def test_it_loses_nothing_and_shortens(corpus: TextFiles) -> None:
    bpe = BPE(corpus, size=300)
    assert len(bpe.vocabulary) == 300
    for text in (*TEXTS, "", "\x00\x7f \ufffd 世界 never seen"):
        ids = bpe.encode(text)
        assert ids.dtype == np.int64
        assert bpe.decode(ids) == text
        assert bpe.byte_lengths[ids].sum() == len(text.encode())
        assert len(ids) <= len(text.encode())
    assert len(bpe.encode(TEXTS[0])) < 0.7 * len(TEXTS[0].encode())


def test_it_is_kept(corpus: TextFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    first = BPE(corpus, size=300)
    vocabulary = list(first.vocabulary)
    monkeypatch.setattr(BPE, "_train", lambda *_: pytest.fail("it was trained before"))
    again = BPE(corpus, size=300)
    assert list(again.vocabulary) == vocabulary
    assert again.identity == first.identity


def test_what_is_held_back_is_not_learned_from(corpus: TextFiles) -> None:
    seen = "".join(BPE(corpus, size=300)._training_text())
    text = text_of(corpus, Unwatched())
    parts = parts_of(text, corpus)
    assert sorted(seen) == sorted("".join(text.of(n).tobytes().decode() for n in parts[TRAIN]))


def test_cut_in_pieces_it_is_that_of_the_whole(corpus: TextFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    bpe = BPE(corpus, size=300)
    monkeypatch.setattr("lcbench.corpus.documents.BLOCK", 40)
    found = tokens_of(corpus, bpe, Unwatched())
    assert found.tokens.dtype == np.uint16
    assert found.about["words_cut"] == 0
    text = text_of(corpus, Unwatched())
    for number in range(len(text)):
        assert found.of(number).tolist() == bpe.encode(text.of(number).tobytes().decode()).tolist()


def test_a_size_without_room(corpus: TextFiles) -> None:
    with pytest.raises(ConfigurationError, match=r"tokenizer.size=256.* the least is 257"):
        BPE(corpus, size=256)


def test_who_waits_is_told_once(corpus: TextFiles) -> None:
    class Counting:
        def __init__(self) -> None:
            self.done: dict[str, list[int]] = {}

        def begin(self, description: str, total: int) -> None:
            self.name = description
            self.done[description] = [0, total]

        def tick(self, more: int) -> None:
            self.done[self.name][0] += more

    # a size that no other test learns
    watcher, again = Counting(), Counting()
    BPE(corpus, size=301).prepare(watcher)
    done, total = watcher.done["learning 301 byte pairs"]
    assert done == total > 0
    BPE(corpus, size=301).prepare(again)
    assert not again.done
