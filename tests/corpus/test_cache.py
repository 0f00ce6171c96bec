"""Made once: by one of several processes, whole or not at all, and anew for another text."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from lcbench.corpus.base import TEST, TRAIN, VALIDATION
from lcbench.corpus.cache import made_once
from lcbench.corpus.documents import Unwatched, pieces_of, text_of, tokens_of, word_starts
from lcbench.corpus.split import parts_of
from lcbench.corpus.text_files import TextFiles
from lcbench.errors import ConfigurationError
from lcbench.tokenizer.bytes import Bytes


class Pairs(Bytes):
    """Two bytes a token, the last one alone: a vocabulary that needs 32 bits."""

    vocabulary = tuple(map(str, range(2**16 + 256)))
    identity = "pairs"

    def encode(self, text: str) -> np.ndarray:
        data = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        even = data[: len(data) // 2 * 2].reshape(-1, 2)
        return np.concatenate([even[:, 0] * 256 + even[:, 1], data[len(even) * 2 :] + 2**16])

    def to_bytes(self, ids: np.ndarray) -> bytes:
        return b"".join(bytes(divmod(i, 256)) if i < 2**16 else bytes([i - 2**16]) for i in ids.tolist())


def corpus_in(folder: Path, texts: list[str]) -> TextFiles:
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text)
    return TextFiles(path=str(folder))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("LCBENCH_CACHE", str(place))
    return place


def test_the_smallest_integers_that_hold_every_id(tmp_path: Path, kept: Path) -> None:
    corpus = corpus_in(tmp_path / "texts", ["zzz", "abcd"])
    assert text_of(corpus, Unwatched()).tokens.dtype == np.uint8
    assert tokens_of(corpus, Bytes(), Unwatched()).tokens.dtype == np.uint8
    found = tokens_of(corpus, Pairs(), Unwatched())
    assert found.tokens.dtype == np.uint32
    assert found.of(0).tolist() == [122 * 257, 2**16 + 122]
    assert found.of(1).tolist() == [97 * 256 + 98, 99 * 256 + 100]


def test_a_changed_text_is_read_again_and_a_copied_one_is_not_cut_again(tmp_path: Path, kept: Path) -> None:
    corpus = corpus_in(tmp_path / "texts", ["one", "two"])
    before = tokens_of(corpus, Pairs(), Unwatched())
    (tmp_path / "texts" / "001.txt").write_text("twos")
    after = tokens_of(corpus, Pairs(), Unwatched())
    assert before.about["content"] != after.about["content"]
    assert len(after.of(1)) == 2
    assert bytes(before.of(0)) == bytes(after.of(0))
    made = sorted((kept / "tokens").glob("[!.]*"))
    copied = corpus_in(tmp_path / "copied", ["one", "twos"])
    assert tokens_of(copied, Pairs(), Unwatched()).about["content"] == after.about["content"]
    assert sorted((kept / "tokens").glob("[!.]*")) == made


def test_a_damaged_file_is_made_again(tmp_path: Path, kept: Path) -> None:
    corpus = corpus_in(tmp_path / "texts", ["one", "two"])
    text_of(corpus, Unwatched())
    (file,) = kept.rglob("text.bin")
    os.truncate(file, 3)
    assert bytes(text_of(corpus, Unwatched()).of(1)) == b"two"


def _make(place: Path, made: Path) -> None:
    def fill(folder: Path) -> None:
        (made / str(os.getpid())).touch()
        time.sleep(0.2)
        (folder / "done").write_text("whole")

    assert (made_once(place, fill) / "done").read_text() == "whole"


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    context = multiprocessing.get_context("fork")
    several = [context.Process(target=_make, args=(tmp_path / "cache" / "x", tmp_path / "made")) for _ in range(4)]
    for process in several:
        process.start()
    for process in several:
        process.join()
    assert [process.exitcode for process in several] == [0] * 4
    assert len(list((tmp_path / "made").iterdir())) == 1


def _hang(place: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("ha")
        os.kill(os.getpid(), signal.SIGKILL)

    made_once(place, fill)


def test_a_killed_process_leaves_nothing_that_counts(tmp_path: Path) -> None:
    place = tmp_path / "x"
    process = multiprocessing.get_context("fork").Process(target=_hang, args=(place,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not place.exists()
    assert list(tmp_path.glob(".x.partial-*"))
    made_once(place, lambda folder: (folder / "whole").touch())
    assert [path.name for path in place.iterdir()] == ["whole"]
    assert not list(tmp_path.glob(".x.partial-*"))


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once(tmp_path / "x", fill)
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ConfigurationError, match="LCBENCH_CACHE=FOLDER"):
        made_once(tmp_path / "closed" / "x", lambda folder: None)


def test_parts_are_disjoint_complete_and_the_same_everywhere(tmp_path: Path, kept: Path) -> None:
    texts = [f"text {number}" for number in range(40)]
    corpus = corpus_in(tmp_path / "texts", texts)
    text = text_of(corpus, Unwatched())
    parts = parts_of(text, corpus)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(40))
    assert [len(parts[part]) for part in (TEST, VALIDATION, TRAIN)] == [2, 2, 36]
    backwards = corpus_in(tmp_path / "backwards", texts[::-1])
    there = text_of(backwards, Unwatched())
    for part, numbers in parts_of(there, backwards).items():
        assert {bytes(there.of(n)) for n in numbers} == {bytes(text.of(n)) for n in parts[part]}


def test_copies_of_a_document_are_in_one_part(tmp_path: Path, kept: Path) -> None:
    corpus = corpus_in(tmp_path / "texts", [f"text {number // 5}" for number in range(20)])
    text = text_of(corpus, Unwatched())
    seen = [{bytes(text.of(n)) for n in numbers} for numbers in parts_of(text, corpus).values()]
    assert sum(map(len, seen)) == 4
    few = TextFiles(path=corpus_in(tmp_path / "few", ["a", "b", "a"]).path, split="documents")
    text = text_of(few, Unwatched())
    with pytest.raises(ConfigurationError, match=r"too few different documents, 2, .* the least is 3"):
        parts_of(text, few)


def test_pieces_are_the_document_and_end_at_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcbench.corpus.documents.BLOCK", 16)
    text = "some words of some length  \n\n  and averyveryverylongwordwithnospace ünïcödé ünïcödé"
    data = np.frombuffer(text.encode(), np.uint8)
    pieces = list(pieces_of(data))
    assert "".join(piece for piece, _ in pieces) == text
    assert all(len(piece.encode()) <= 16 for piece, _ in pieces)
    assert any(within for _, within in pieces)
    for (piece, within), (after, _) in itertools.pairwise(pieces):
        assert within == (not after[0].isspace() or piece[-1].isspace() or ord(piece[-1]) > 127)


def test_words_begin_after_white_space() -> None:
    text = b"  a bc\td\n\nef "
    assert word_starts(text).sum() == len(text.split())
    assert np.flatnonzero(word_starts(text)).tolist() == [2, 4, 7, 10]
    assert len(word_starts(b"")) == 0
