"""Data sets of the hub's formats on the disk: rows, articles of lines, repositories of files, splits, and mistakes."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("zstandard")
import pyarrow
import pyarrow.parquet
import yaml
import zstandard

from lcbench.configs import config_directory
from lcbench.corpus.base import PARTS, TEST, TRAIN, VALIDATION
from lcbench.corpus.documents import Documents, Unwatched, text_of
from lcbench.corpus.enwik8 import Enwik8
from lcbench.corpus.huggingface import HuggingFace
from lcbench.corpus.split import parts_of
from lcbench.errors import ConfigurationError

Rows = Iterable[dict[str, Any]]
Write = Callable[[Path, Rows], None]


def parquet(path: Path, rows: Rows) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path.with_suffix(".parquet"))


def jsonl(path: Path, rows: Rows) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def compressed(path: Path, rows: Rows) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.with_suffix(".jsonl.zst").write_bytes(zstandard.compress(data))


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and no network to wait for."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LCBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def texts_of(documents: Documents, numbers: Iterable[int] | None = None) -> list[str]:
    chosen = range(len(documents)) if numbers is None else numbers
    return [documents.of(int(number)).tobytes().decode() for number in chosen]


def read(corpus: HuggingFace) -> tuple[dict[str, list[str]], Documents]:
    """The texts of every part, and what was read."""
    found = text_of(corpus, Unwatched())
    return {part: sorted(texts_of(found, numbers)) for part, numbers in parts_of(found, corpus).items()}, found


def rows_of(split: str, count: int = 4) -> list[dict[str, Any]]:
    return [{"text": f"{split} {number} Grüße 世界\n", "other": number} for number in range(count)]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("write", [parquet, jsonl, compressed])
def test_rows_are_documents_and_splits_are_parts(
    write: Callable[[Path, Rows], None], streaming: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in (TRAIN, VALIDATION, TEST):
        write(folder / split, rows_of(split))
    parts, found = read(HuggingFace(path=str(folder), streaming=streaming))
    assert parts == {split: [row["text"] for row in rows_of(split)] for split in (TRAIN, VALIDATION, TEST)}
    assert found.about["rows"] == found.about["documents"] == 12
    assert found.about["split"] == "published validation and test"
    assert found.names([0, 5]) == ["train 0", "validation 1"]


def test_text_files_are_documents(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in (TRAIN, VALIDATION, TEST):
        (folder / f"{split}.txt").write_text(f"{split}\n\nlines \n")
    parts, _ = read(HuggingFace(path=str(folder)))
    assert parts == {split: [f"{split}\n\nlines \n"] for split in (TEST, VALIDATION, TRAIN)}


def test_what_the_data_set_does_not_bring_is_cut_out_of_training(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    parquet(folder / "train", rows_of("train", 40))
    parquet(folder / "validation", rows_of("validation"))
    parts, _ = read(HuggingFace(path=str(folder), test=0.1))
    assert parts[VALIDATION] == [row["text"] for row in rows_of("validation")]
    assert (len(parts[TEST]), len(parts[TRAIN])) == (4, 36)
    assert sorted(parts[TEST] + parts[TRAIN]) == sorted(row["text"] for row in rows_of("train", 40))
    again, _ = read(HuggingFace(path=str(folder), test=0.1, test_split="validation", validation_split="train"))
    assert again[TEST] == parts[VALIDATION]
    alone, _ = read(HuggingFace(path=str(folder / "train.parquet")))
    assert [len(alone[part]) for part in (TRAIN, VALIDATION, TEST)] == [36, 2, 2]


ARTICLES = (
    " \n = One = \n \n text of = one = \n \n = = Part = = \n \n more \n",
    " \n = Two ( film ) = \n \n = x = \n text \n \n = = = Deep = = = \n",
)


def ready(choice: str, **changes: Any) -> HuggingFace:
    options = yaml.safe_load((config_directory() / "corpus" / f"{choice}.yaml").read_text())
    del options["_target_"]
    return HuggingFace(**options | changes)


def test_articles_are_rebuilt_from_lines(alone: Path) -> None:
    """From parquet, whose rows lost the ends of empty lines, as from the files: byte by byte."""
    folder = alone / "datasets" / "Salesforce--wikitext" / "wikitext-103-raw-v1"
    folder.mkdir(parents=True)
    lines = "".join(ARTICLES).splitlines(keepends=True)
    for split in (TRAIN, VALIDATION, TEST):
        rows = [{"text": line if line.strip() else ""} for line in lines] + [{"text": f" {split} \n"}]
        parquet(folder / f"{split}-00000-of-00001", rows)
    parts, found = read(ready("wikitext103"))
    # empty lines before the first title are its article's; after that, an article ends with the line before a title
    assert texts_of(found)[:2] == [ARTICLES[0] + " \n", ARTICLES[1].removeprefix(" \n") + " train \n"]
    assert found.names([0, 1]) == ["train: = One =", "train: = Two ( film ) ="]
    assert len(parts[TEST]) == len(parts[VALIDATION]) == 2
    assert found.about["groups_of_rows"] == 6
    files = alone / "files"
    files.mkdir()
    for split in (TRAIN, VALIDATION, TEST):
        (files / f"{split}.txt").write_text("".join(lines) + f" {split} \n")
    again = text_of(ready("wikitext103", path=str(files), name=None), Unwatched())
    assert again.about["content"] == found.about["content"]


def test_files_of_a_repository_are_one_document(alone: Path) -> None:
    folder = alone / "datasets" / "codeparrot--github-code-clean" / "data"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = [
        {
            "repo_name": f"o/r{repo}",
            "path": f"{'/'.join('ab'[i] for i in rng.integers(2, size=3))}/{n}.py",
            "code": f"# {repo} {n} é\n" * 3,
        }
        for repo in range(5)
        for n in range(12)
    ]
    files.append({"repo_name": "o/r0", "path": "x", "code": None})
    shuffled = [files[i] for i in rng.permutation(len(files))]
    parquet(folder / "train-00000-of-00002", shuffled[:30])
    parquet(folder / "train-00001-of-00002", shuffled[30:])
    _, found = read(ready("github_code"))
    assert found.about["documents"] == 5
    assert found.about["skipped_rows_without_text"] == 1
    for text, name in zip(texts_of(found), found.names(range(5)), strict=True):
        mine = {file["code"]: file["path"] for file in files if file["repo_name"] == name and file["code"]}
        order = []
        while text:
            code = next(code for code in mine if text.startswith(code))
            order.append(mine.pop(code))
            text = text.removeprefix(code)
        assert not mine
        for depth in (1, 2, 3):
            # a folder is read to its end before the next one begins
            folders = ["/".join(path.split("/")[:depth]) for path in order]
            runs = [a for a, b in zip(folders, [None, *folders], strict=False) if a != b]
            assert len(runs) == len(set(runs))


def test_short_documents_are_left_out_and_counted(alone: Path) -> None:
    folder = alone / "datasets" / "allenai--c4" / "en"
    folder.mkdir(parents=True)
    rows = [{"text": "x" * length, "url": "u"} for length in (10, 4095, 4096, 5000, 6000, 7000)]
    compressed(folder / "c4-train.00000-of-01024", rows)
    compressed(folder / "c4-validation.00000-of-00008", rows)
    corpus = ready("c4_long")
    parts, found = read(corpus)
    assert found.about["skipped_short"] == 4
    assert [len(text) for text in parts[VALIDATION]] == [4096, 5000, 6000, 7000]
    assert corpus.min_document == 4096


def test_rows_without_text_and_a_number_of_rows(tmp_path: Path) -> None:
    rows = [{"text": None}, {"text": ""}, *rows_of("train", 8)]
    jsonl(tmp_path / "data", rows)
    _, found = read(HuggingFace(path=str(tmp_path / "data.jsonl"), rows=7))
    assert found.about["rows"] == 7
    assert found.about["skipped_without_text"] == found.about["skipped_empty"] == 1
    assert len(found) == 5


def test_what_was_read_is_kept_and_what_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "data", rows_of("train", 8))
    corpus = HuggingFace(path=str(tmp_path / "data.jsonl"))
    before = text_of(corpus, Unwatched()).about["content"]
    with monkeypatch.context() as patched:
        patched.setattr(HuggingFace, "documents", lambda *_: pytest.fail("it was read before"))
        assert text_of(HuggingFace(path=str(tmp_path / "data.jsonl")), Unwatched()).about["content"] == before
    jsonl(tmp_path / "data", rows_of("train", 9))
    assert text_of(HuggingFace(path=str(tmp_path / "data.jsonl")), Unwatched()).about["content"] != before


def test_a_reading_that_breaks_off_leaves_nothing(tmp_path: Path, alone: Path) -> None:
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data" / "train-0", rows_of("train"))
    (tmp_path / "data" / "train-1.jsonl").write_text('{"text": tru\n' * 3)
    with pytest.raises(ConfigurationError, match=r"broke off after 4 rows of train .*; the same command"):
        read(HuggingFace(path=str(tmp_path / "data")))
    assert not [path for path in (alone / "text").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    "choice", ["wikitext103", "pg19", "proof_pile", "arxiv_math", "the_stack", "c4_long", "github_code"]
)
def test_without_a_network_each_says_what_to_download_and_where_to_put_it(choice: str, alone: Path) -> None:
    corpus = ready(choice)
    with pytest.raises(ConfigurationError) as error:
        read(corpus)
    said = str(error.value)
    assert (
        f"https://huggingface.co/datasets/{corpus.path} into {alone}/datasets/{corpus.path.replace('/', '--')}" in said
    )
    for what in [*(corpus.data_files or {}).values(), corpus.data_dir or "", corpus.configuration or ""]:
        assert what in said
    assert "\n" not in said


def test_enwik8_is_cut_where_everybody_cuts_it(alone: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no .*datasets/enwik8/enwik8; unpack https.*"):
        Enwik8()
    place = alone / "datasets" / "enwik8" / "enwik8"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"0123456789" * 100)
    corpus = Enwik8()
    found = text_of(corpus, Unwatched())
    parts = parts_of(found, corpus)
    assert {part: [len(found.of(n)) for n in numbers] for part, numbers in parts.items()} == {
        TRAIN: [900],
        VALIDATION: [50],
        TEST: [50],
    }
    assert found.parts.tolist() == [PARTS.index(part) for part in (TRAIN, VALIDATION, TEST)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"path": "./nowhere"}, "corpus.path=./nowhere: there is no such folder or file"),
        ({"text": "txt"}, "corpus.text=txt: the rows of {here} have no such field; the closest is text"),
        ({"test_split": "tset"}, "corpus.test_split=tset: {here} has no such split; the closest is t"),
        ({"begins": "("}, "corpus.begins=( is no expression"),
        ({"begins": "a", "together": "b"}, "both say what is one document"),
        ({"order": "path"}, "set corpus.together as well"),
        ({"rows": 0}, "corpus.rows=0 leaves nothing; the closest that works is 1"),
        ({"split": "stretches"}, "corpus.split=stretches: {here} brings its own validation"),
        ({"data_files": {"train": "*.dat"}}, "cannot be read"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in (TRAIN, VALIDATION):
        parquet(folder / split, rows_of(split))
    with pytest.raises(ConfigurationError) as error:
        read(HuggingFace(**{"path": str(folder), **options}))
    assert says.format(here=folder) in str(error.value)


@pytest.mark.parametrize("write", [parquet, compressed])
def test_memory_does_not_grow_with_the_data_set(write: Write, tmp_path: Path) -> None:
    """Python's own memory: what Arrow holds are blocks of fixed size. When a batch that was read is given back is the
    collector's business, so a few of them are allowed; the second data set has 40 MiB more."""
    folder = tmp_path / "data"
    folder.mkdir()
    most = []
    for files in (1, 6):
        for number in range(files):
            write(
                folder / f"train-{number:05}-of-{files:05}",
                ({"text": f"{number} {row}" + "x" * 2**20} for row in range(8)),
            )
        corpus = HuggingFace(path=str(folder), data_files={"train": "train-*"})
        gc.collect()
        tracemalloc.start()
        assert len(text_of(corpus, Unwatched())) >= 8
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert most[1] < most[0] + 16 * 2**20
