"""Parts: of documents, of stretches of one long text, and where there are too few of either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lcbench.corpus.base import TEST, TRAIN, VALIDATION, Split
from lcbench.corpus.documents import Unwatched, text_of, tokens_of
from lcbench.corpus.split import parts_of
from lcbench.corpus.text_files import TextFiles
from lcbench.errors import ConfigurationError
from lcbench.task.language_modelling import LanguageModelling
from lcbench.tokenizer.bytes import Bytes


def corpus_of(folder: Path, texts: list[str], split: Split = "auto") -> TextFiles:
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_text(text)
    return TextFiles(path=str(folder), split=split, validation=0.2, test=0.1)


def stretches(corpus: TextFiles) -> dict[str, list[str]]:
    found = text_of(corpus, Unwatched())
    return {
        part: [found.of(n).tobytes().decode() for n in numbers] for part, numbers in parts_of(found, corpus).items()
    }


def test_one_book_is_cut_into_stretches_in_its_order(tmp_path: Path) -> None:
    book = "".join(chr(0x4E00 + n % 1000) for n in range(1000))  # three bytes a character
    parts = stretches(corpus_of(tmp_path, [book]))
    (train,), (validation,), (test,) = (parts[part] for part in (TRAIN, VALIDATION, TEST))
    assert train + validation + test == book
    # the shares, to the character that they fall into
    assert [len(part) for part in (train, validation, test)] == [700, 200, 100]
    found = text_of(corpus_of(tmp_path, [book]), Unwatched())
    assert found.about["split"] == "stretches"
    assert found.names(range(3)) == ["00.txt"] * 3
    uneven = stretches(corpus_of(tmp_path, ["é" * 10 + "x"]))
    assert uneven[TRAIN] + uneven[VALIDATION] + uneven[TEST] == ["é" * 8, "é" * 2, "x"]


def test_a_run_on_one_book_counts_and_trains_on_its_own_stretches(tmp_path: Path) -> None:
    book = " ".join(map(str, range(2000)))
    task = LanguageModelling(corpus_of(tmp_path, [book]), Bytes(), length=16, max_document=None)
    (validation,) = task.numbers(VALIDATION)
    batch = task.rows("streaming", 10**6, 0).take(0, 1)
    text = bytes([*batch.tokens[0].tolist(), int(batch.targets[0, -1])]).decode()
    assert text == stretches(corpus_of(tmp_path, [book]))[VALIDATION][0]
    drawn = task.sample(np.random.default_rng(0), 100, TRAIN)
    (train,) = stretches(corpus_of(tmp_path, [book]))[TRAIN]
    for row in drawn.tokens.tolist():
        assert bytes(row).decode() in train
    assert int(validation) not in set(drawn.facts["document"].tolist())


def test_auto_takes_documents_where_there_are_three(tmp_path: Path) -> None:
    texts = [f"{n} " * 40 for n in range(3)]
    assert [len(part) for part in stretches(corpus_of(tmp_path / "a", texts)).values()] == [1, 1, 1]
    whole = stretches(corpus_of(tmp_path / "b", texts, "stretches"))
    assert [len(part) for part in whole.values()] == [3, 3, 3]
    assert sorted(text[0] for text in whole[TRAIN]) == ["0", "1", "2"]
    with pytest.raises(ConfigurationError, match=r"too few .*, 1, .* the least is 3; .* corpus.split=stretches"):
        stretches(corpus_of(tmp_path / "c", texts[:1], "documents"))
    with pytest.raises(ConfigurationError, match=r"too few different documents, 0, for test, validation"):
        stretches(corpus_of(tmp_path / "d", ["x"]))


def test_copies_are_cut_alike_and_together(tmp_path: Path) -> None:
    found = text_of(corpus_of(tmp_path, ["abcdefghij", "abcdefghij"]), Unwatched())
    assert len(found) == 6
    assert len(set(found.digests.tolist())) == 3
    assert found.digests[:3].tolist() == found.digests[3:].tolist()


class Pairs(Bytes):
    """Two bytes a token, and a byte that is left."""

    vocabulary = tuple(map(str, range(2**16 + 256)))
    identity = "pairs of a stretch"

    def encode(self, text: str) -> np.ndarray:
        data = text.encode()
        pairs = [data[i] * 256 + data[i + 1] for i in range(0, len(data) - 1, 2)]
        return np.array(pairs + ([2**16 + data[-1]] if len(data) % 2 else []), np.int64)

    def to_bytes(self, ids: np.ndarray) -> bytes:
        return b"".join(bytes(divmod(i, 256)) if i < 2**16 else bytes([i - 2**16]) for i in ids.tolist())


def test_no_token_reaches_over_a_cut_and_other_shares_are_cut_again(tmp_path: Path) -> None:
    book = "0123456789" * 7
    first = corpus_of(tmp_path, [book])
    second = TextFiles(path=str(tmp_path), validation=0.3, test=0.1)
    for corpus in (first, second):
        text, found = text_of(corpus, Unwatched()), tokens_of(corpus, Pairs(), Unwatched())
        for number in range(3):
            assert Pairs().to_bytes(found.of(number)) == text.of(number).tobytes()
    contents = [text_of(corpus, Unwatched()).about["content"] for corpus in (first, second)]
    assert contents[0] != contents[1]
