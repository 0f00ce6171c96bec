"""Files as people have them: encodings, bad bytes, binaries, huge lines; nothing is lost without being counted."""

from __future__ import annotations

import codecs
from pathlib import Path

import numpy as np
import pytest

from lcbench.corpus import base
from lcbench.corpus.documents import Documents, Unwatched, text_of
from lcbench.corpus.python_stdlib import PythonStdlib
from lcbench.corpus.text_files import TextFiles
from lcbench.errors import ConfigurationError


def read(path: Path, **options: object) -> tuple[dict[str, str], Documents]:
    """The texts by file name, and what was read."""
    corpus = TextFiles(path=str(path), split="documents", **options)  # type: ignore[arg-type]
    found = text_of(corpus, Unwatched())
    return {str(i): found.of(i).tobytes().decode() for i in range(len(found))}, found


@pytest.mark.parametrize("block", [1, 2, 3, 5, 2**20])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
    ],
)
def test_encodings_that_a_file_declares(
    encoding: str, mark: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Grüße, 世界 🙂\r\nand so on\n"
    (tmp_path / "a.txt").write_bytes(mark + text.encode(encoding))
    if block > 4:  # the mark has to be in what is read first
        monkeypatch.setattr(base, "BLOCK", block)
    texts, found = read(tmp_path)
    assert texts == {"0": text}
    assert found.about["replacement_characters"] == 0


def test_an_encoding_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße".encode("latin-1"))
    assert read(tmp_path, encoding="latin-1")[0] == {"0": "Grüße"}
    texts, found = read(tmp_path)
    assert texts == {"0": "Gr\ufffd\ufffde"}
    assert found.about["replacement_characters"] == 2


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.txt").write_text("hidden")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "deep" / "er" / "b.txt").write_text("two")
    (tmp_path / "c.bin").write_bytes(b"\x7fELF\0\0\1")
    (tmp_path / "d.txt").write_text("")
    (tmp_path / "e.txt").write_bytes(b"good until \xff here")
    (tmp_path / "f").symlink_to(tmp_path / "nowhere")
    texts, found = read(tmp_path, bad_bytes="skip")
    assert list(texts.values()) == ["one", "two"]
    assert found.about["files"] == 5
    assert {key: n for key, n in found.about.items() if key.startswith("skipped")} == {
        "skipped_binary": 1,
        "skipped_empty": 1,
        "skipped_not_utf_8": 1,
    }
    texts, found = read(tmp_path)
    assert list(texts.values()) == ["one", "two", "good until \ufffd here"]
    assert found.about["skipped_binary"] == found.about["skipped_empty"] == 1


def test_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        for _ in range(40):
            file.write(b"0123456789" * 2**17)  # 1.25 MiB
    tracemalloc.start()
    found = text_of(TextFiles(path=str(path), split="documents"), Unwatched())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.ends.tolist() == [50 * 2**20]
    assert most < 10 * 2**20
    assert bytes(found.tokens[-10:]) == b"0123456789"


def test_a_pattern_chooses_files(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(read(tmp_path / "**" / "*.txt")[0].values()) == ["a.txt", "sub/c.txt"]
    assert list(read(tmp_path / "b.md")[0].values()) == ["b.md"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"path": "{here}/bokos"},
            "corpus.path={here}/bokos: there is no such folder or file; the closest is {here}/books",
        ),
        ({"path": "{here}/empty"}, "corpus.path={here}/empty holds no file"),
        ({"path": "{here}/*.tex"}, "corpus.path={here}/*.tex matches no file"),
        (
            {"path": "{here}/books", "encoding": "utf-9"},
            "corpus.encoding=utf-9: no such encoding of text; the closest is utf-",
        ),
        ({"path": "{here}/books", "encoding": "zlib"}, "corpus.encoding=zlib: no such encoding of text"),
        ({"path": "{here}/books", "test": 0.0}, "corpus.test=0.0: must be between 0 and 1"),
        ({"path": "{here}/books", "test": 0.5, "validation": 0.5}, "leave nothing to train on"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], says: str, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    filled = {k: v.format(here=tmp_path) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(ConfigurationError) as error:
        TextFiles(**filled)  # type: ignore[arg-type]
    assert says.format(here=tmp_path) in str(error.value)


def test_a_folder_without_text_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(ConfigurationError, match=r"has no text: of its 2 files, 1 binary, 1 empty\."):
        read(tmp_path)


def test_the_standard_library_is_code_and_nothing_else() -> None:
    corpus = PythonStdlib()
    files = corpus.files()
    assert len(files) > 500
    assert all(path.suffix == ".py" and "site-packages" not in path.parts for path in files)
    (argparse,) = (path for path in files if path.relative_to(corpus.root) == Path("argparse.py"))
    assert "".join(corpus.read(argparse)) == argparse.read_bytes().decode()
    assert corpus.stamp() == PythonStdlib().stamp()


def test_the_encoding_that_code_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latin.py"
    path.write_bytes("# -*- coding: latin-1 -*-\nname = 'Grüße'\n".encode("latin-1"))
    assert "Grüße" in "".join(PythonStdlib().read(path))
    path.write_bytes(b"# -*- coding: klingon -*-\nname = 'x'\n")
    assert "name = 'x'" in "".join(PythonStdlib().read(path))


def test_memory_maps_what_it_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    _, found = read(tmp_path)
    assert isinstance(found.tokens, np.memmap)
    assert not found.tokens.flags.writeable
