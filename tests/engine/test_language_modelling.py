"""Language modelling end to end: trained, scored, recorded, compared, scored again; and what changed files do."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from lcbench.again import evaluate, resume
from lcbench.composition import build, compose
from lcbench.corpus.text_files import TextFiles
from lcbench.engine.evaluate import _Evaluation
from lcbench.engine.progress import composing
from lcbench.errors import ConfigurationError
from lcbench.objective import next_token
from lcbench.objective.next_token import next_token_loss
from lcbench.results.compare import compare
from lcbench.results.table import run_table

Run = Callable[..., tuple[dict[str, Any], Path, str]]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        (folder / f"{number}.txt").write_text("".join(f"{word} " for word in rng.integers(30, size=200)))
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    return folder


def words(texts: Path, *more: str) -> list[str]:
    return [
        *("task=language_modelling", "corpus=text_files", f"corpus.path={texts}", "task.length=32", "position=rope"),
        *("model.d_model=16", "model.n_heads=2", "model.n_layers=1", "trainer.batch_size=8", "trainer.max_steps=30"),
        *("optimizer.lr=0.01", "trainer.evaluate_every=10", "trainer.log_every=5", "evaluation.examples=10"),
        *("evaluation.light_examples=4", "logger=none", "trainer.device=cpu", *more),
    ]


@pytest.mark.parametrize("dataset", ["synthetic", "concatenated", "contiguous", "stream"])
def test_a_run_learns_and_records_what_it_read(dataset: str, texts: Path, run_here: Run) -> None:
    result, folder, screen = run_here(base=words(texts, f"dataset={dataset}"))
    assert result["status"] == "completed", result["error"]
    for name in ("non_overlapping", "sliding", "streaming"):
        assert 1 < result[f"scores/{name}/bits_per_byte"] < 6.5  # a byte in 256 is 8 bits
        assert result[f"scores/{name}/bits_per_byte_n"] == result[f"scores/{name}/loss_n"] == 10 * 32
        nats = result[f"scores/{name}/loss"]
        assert result[f"scores/{name}/perplexity"] == pytest.approx(math.exp(nats))
        assert result[f"counts/{name}/documents"] == 1
    assert result["data/skipped_binary"] == 1
    assert result["data/documents"] == 12
    assert result["data/tokenizer"] == "bytes"
    for shown in ("chance 5.545 256", "skipped binary", "documents cut", "320"):
        assert shown in " ".join(screen.split())
    assert float((folder / "metrics.csv").read_text().splitlines()[-1].split(",")[-1]) < 6.5


def test_landmarks_do_not_count(texts: Path, run_here: Run) -> None:
    result, _, _ = run_here(base=words(texts, "dataset=landmark", "dataset.block=4", "attention=landmark"))
    assert result["status"] == "completed", result["error"]
    assert result["scores/sliding/bits_per_byte_n"] == 320
    assert result["scores/sliding/bits_per_byte"] < 6.5


def test_scored_again_at_other_lengths_and_compared(texts: Path, run_here: Run, tmp_path: Path) -> None:
    base = words(texts, "trainer.max_steps=4", "evaluation.sets=[sliding]")
    _, folder, _ = run_here(base=base)
    run_here("seed=1", base=base)
    screen = io.StringIO()
    found = evaluate(
        folder,
        ["evaluation.sets=[test_sliding,streaming]", "evaluation.lengths=[16,64]"],
        Console(file=screen, width=200),
    )
    assert found["status"] == "completed", found["error"]
    names = {key.split("/")[1] for key in found if key.startswith("scores/")}
    assert names == {"test_sliding", "test_sliding_length_16", "test_sliding_length_64", "streaming"}
    assert {found[f"scores/{name}/loss_n"] for name in names} == {320}
    assert "documents left out" in " ".join(screen.getvalue().split())
    (table,) = compare([tmp_path], metrics=["sliding/bits_per_byte"]).tables
    (row,) = table.rows
    summary = row.scores["sliding/bits_per_byte"]
    assert summary.n == 2
    assert summary.solved is None
    assert summary.low < summary.mean < summary.high


def test_a_changed_corpus_does_not_go_on_silently(texts: Path, run_here: Run) -> None:
    _, folder, _ = run_here(base=words(texts, "trainer.max_steps=4", "evaluation.sets=[sliding]"))
    (texts / "0.txt").write_text("other words")
    found = evaluate(folder, ["evaluation.sets=[streaming]"], Console(quiet=True))
    assert found["status"] == "failed"
    assert "the files of the corpus have changed since" in found["error"]
    record = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(record | {"status": "interrupted"}))
    for _ in range(2):  # also when it has failed once
        again = resume(folder, [], Console(quiet=True))
        assert again["status"] == "failed"
        assert "bring them back, or rerun=true starts over" in again["error"]
    longer = resume(folder, ["trainer.max_steps=6"], Console(quiet=True))
    assert longer["status"] == "failed"
    assert "changed since" in longer["error"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_losses_of_documents_stand_beside_the_record(texts: Path, run_here: Run) -> None:
    result, folder, _ = run_here(base=words(texts, "trainer.max_steps=4", "corpus.validation=0.3"))
    rows = rows_of(folder / "documents.csv")
    for name in ("non_overlapping", "sliding", "streaming"):
        mine = [row for row in rows if row["evaluation_set"] == name]
        assert len(mine) == result[f"counts/{name}/documents"]
        nats = sum(float(row["nats"]) for row in mine)
        assert nats / sum(int(row["tokens"]) for row in mine) == pytest.approx(result[f"scores/{name}/loss"])
        assert all((texts / row["document"]).exists() for row in mine)
    before = (folder / "documents.csv").read_text()
    found = evaluate(folder, ["evaluation.sets=[test_sliding]", "evaluation.lengths=[16]"], Console(quiet=True))
    assert found["status"] == "completed", found["error"]
    (beside,) = (folder / "evaluations").glob("*.csv")
    assert beside.with_suffix(".json").exists()
    assert {row["evaluation_set"] for row in rows_of(beside)} == {"test_sliding", "test_sliding_length_16"}
    assert (folder / "documents.csv").read_text() == before


def test_an_evaluation_that_goes_on_keeps_the_losses_it_has(
    texts: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, _ = run_here(base=words(texts, "trainer.max_steps=4", "evaluation.sets=[sliding]"))
    asked = ["evaluation.sets=[test_sliding,streaming]"]
    with monkeypatch.context() as patched:
        patched.setattr("lcbench.engine.evaluation.stream_score", lambda *_, **__: 1 / 0)
        assert evaluate(folder, asked, Console(quiet=True))["status"] == "failed"
    (beside,) = (folder / "evaluations").glob("*.csv")
    first = rows_of(beside)
    assert {row["evaluation_set"] for row in first} == {"test_sliding"}
    assert evaluate(folder, asked, Console(quiet=True))["status"] == "completed"
    again = rows_of(beside)
    assert again[: len(first)] == first
    assert {row["evaluation_set"] for row in again} == {"test_sliding", "streaming"}


def test_losses_of_documents_come_once_where_the_record_was_never_written(
    texts: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, _ = run_here(base=words(texts, "trainer.max_steps=4", "evaluation.sets=[sliding]"))
    asked = ["evaluation.sets=[test_sliding,streaming]"]
    write = _Evaluation._write

    def breaking(self: _Evaluation) -> None:
        if "scores/streaming/loss" in self.result:
            raise RuntimeError("the machine breaks")
        write(self)

    with monkeypatch.context() as patched:
        patched.setattr(_Evaluation, "_write", breaking)
        with contextlib.suppress(RuntimeError):
            evaluate(folder, asked, Console(quiet=True))
    (record,) = (folder / "evaluations").glob("*.json")
    beside = record.with_suffix(".csv")
    assert "scores/streaming/loss" not in json.loads(record.read_text())
    first = rows_of(beside)
    assert {row["evaluation_set"] for row in first} == {"test_sliding", "streaming"}
    assert evaluate(folder, asked, Console(quiet=True))["status"] == "completed"
    again = rows_of(beside)
    scored = [(row["evaluation_set"], row["digest"], row["tokens"]) for row in again]
    assert len(set(scored)) == len(scored)
    assert scored == [(row["evaluation_set"], row["digest"], row["tokens"]) for row in first]


def test_a_task_without_documents_leaves_no_table(run_here: Run) -> None:
    _, folder, _ = run_here()
    assert not (folder / "documents.csv").exists()


@pytest.mark.parametrize("dataset", ["synthetic", "concatenated", "contiguous"])
def test_a_run_with_a_token_before_documents(dataset: str, texts: Path, run_here: Run) -> None:
    result, _, _ = run_here(base=words(texts, "task.begin=true", f"dataset={dataset}"))
    assert result["status"] == "completed", result["error"]
    assert result["scores/sliding/bits_per_byte"] < 6.5


def test_a_changed_tokenizer_does_not_go_on_silently(texts: Path, run_here: Run, tmp_path: Path) -> None:
    """Its vocabulary may even be larger than the network's."""
    pytest.importorskip("tiktoken")
    ranks = tmp_path / "ranks.tiktoken"
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    ranks.write_text("\n".join(lines))
    base = words(
        texts, "trainer.max_steps=4", "evaluation.sets=[sliding]", "tokenizer=tiktoken", f"tokenizer.name={ranks}"
    )
    first, folder, _ = run_here(base=base)
    assert first["status"] == "completed", first["error"]
    ranks.write_text("\n".join([*lines, f"{base64.b64encode(b' 1').decode()} 256"]))
    for found in (
        evaluate(folder, ["evaluation.sets=[streaming]"], Console(quiet=True)),
        resume(folder, ["trainer.max_steps=6"], Console(quiet=True)),
    ):
        assert found["status"] == "failed"
        assert "the files of the tokenizer have changed since" in found["error"]


def test_composing_neither_reads_nor_trains_unless_it_says_so(
    texts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("LCBENCH_CACHE", str(tmp_path / "cache"))
    base = words(texts, "tokenizer=bpe", "tokenizer.size=300")
    experiment = build(compose(base))
    assert len(experiment.task.vocabulary) == 300
    assert not (tmp_path / "cache").exists()
    # a streamed document may be longer than a table of positions: now the text is needed
    needed = [*base, "task.max_document=null"]
    screen = io.StringIO()
    with composing(Console(file=screen)) as watcher:
        build(compose(needed), watcher=watcher)
    said = screen.getvalue()
    for what in (f"reading {texts}", "learning 300 byte pairs", "cutting the text into tokens"):
        assert f"{what} (once; kept for the next time)" in " ".join(said.split())
    silent = io.StringIO()
    with composing(Console(file=silent)) as watcher:
        build(compose(needed), watcher=watcher)
    assert "once" not in silent.getvalue()


def test_a_stop_while_text_is_cut_leaves_nothing_half(
    texts: Path, run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    from lcbench.tokenizer.bpe import BPE

    base = words(texts, "tokenizer=bpe", "tokenizer.size=300", "evaluation.sets=[sliding]")
    monkeypatch.setenv("LCBENCH_CACHE", str(tmp_path / "cache"))
    encode, calls = BPE.encode, []

    def stopping(self: BPE, text: str) -> np.ndarray:
        calls.append(text)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(self, text)

    with monkeypatch.context() as patched:
        patched.setattr(BPE, "encode", stopping)
        assert run_here(base=base)[0]["status"] == "interrupted"
    assert 4 <= len(calls) < 12
    assert [path.name for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir()] == []
    assert run_here(base=base)[0]["status"] == "completed"


def test_memories_of_other_rows_are_refused_where_rows_may_hold_the_same_text(texts: Path) -> None:
    base = words(texts, "objective=trime", "dataset=packed", "dataset.size=16")
    build(compose(base))
    with pytest.raises(ConfigurationError, match=r"objective.memory=external: rows are stretches of a text that may"):
        build(compose([*base, "objective.memory=external"]))
    build(compose(["task=passkey", "dataset=packed", "objective=trime", "objective.memory=external", "logger=none"]))


def test_broken_and_resumed_it_is_the_same_run(texts: Path, run_here: Run, tmp_path: Path) -> None:
    from lcbench.engine.run import run

    base = [
        *words(texts, "dataset=contiguous", "attention=transformer_xl", "attention.segment=8"),
        "position=transformer_xl",
    ]
    whole, _, _ = run_here(base=[*base, "trainer.checkpoint_every=10"])
    experiment = build(compose([*base, "trainer.checkpoint_every=10", f"outputs={tmp_path / 'other'}"]))
    calls = {"n": 0}
    batch = experiment.dataset.batch

    def stopping(index: int) -> Any:
        calls["n"] += 1
        if calls["n"] > 17:
            raise RuntimeError("the machine breaks")
        return batch(index)

    experiment.dataset.batch = stopping  # type: ignore[method-assign]
    assert run(experiment, Console(quiet=True))["status"] == "failed"
    again = build(compose([*base, "trainer.checkpoint_every=10", f"outputs={tmp_path / 'other'}"]))
    resumed = run(again, Console(quiet=True))
    assert resumed["status"] == "completed"
    for key, value in whole.items():
        if key.startswith("scores/") and value == value:
            assert resumed[key] == value, key


def test_a_stop_while_reading_leaves_nothing_half(
    texts: Path, run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCBENCH_CACHE", str(tmp_path / "cache"))
    read = TextFiles.read

    def stopping(self: TextFiles, path: Path) -> Any:
        if path.name == "5.txt":
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, path)

    monkeypatch.setattr(TextFiles, "read", stopping)
    result, _, _ = run_here(base=words(texts))
    assert result["status"] == "interrupted"
    assert [path.name for path in (tmp_path / "cache" / "text").iterdir() if path.is_dir()] == []
    monkeypatch.undo()
    monkeypatch.setenv("LCBENCH_CACHE", str(tmp_path / "cache"))
    assert run_here(base=words(texts))[0]["status"] == "completed"


def test_the_loss_in_slices_is_the_loss(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = build(compose(words(texts)))
    torch.manual_seed(0)
    model, batch = experiment.make_model().double(), experiment.dataset.batch(0)
    whole = next_token_loss(model(batch.tokens), batch)
    gradients = torch.autograd.grad(whole, list(model.parameters()))
    monkeypatch.setattr(next_token, "MOST_LOGITS", 256 * 7)
    sizes = []
    output = model(batch.tokens)
    unembed = output.unembed

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return unembed(hidden)

    output.unembed = watched
    sliced = next_token_loss(output, batch)
    assert torch.allclose(sliced, whole)
    again = torch.autograd.grad(sliced, list(model.parameters()))
    assert all(torch.allclose(a, b) for a, b in zip(gradients, again, strict=True))
    assert max(sizes) == 7


def test_a_record_with_unknown_intervals_is_shown() -> None:
    scores = {"": 1.0, "_low": math.nan, "_high": math.nan, "_n": 5}
    record = {"task/headline": "bits_per_byte", **{f"scores/sliding/bits_per_byte{k}": v for k, v in scores.items()}}
    screen = io.StringIO()
    Console(file=screen, width=120).print(run_table(record))
    assert "unknown" in screen.getvalue()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["task=flip_flop", "corpus=text_files"],
            "corpus=text_files: task=flip_flop has no corpus; drop it, or take task=language_modelling",
        ),
        (["tokenizer=bytes"], "tokenizer=bytes: task=flip_flop has no tokenizer"),
        (["task=passkey_text", "corpus=python_stdlib"], "task=passkey_text has no corpus"),
        (["task=language_modelling", "corpus=text_files"], "corpus.path is missing"),
        (["task=language_modelling", "corpus=text_file"], "the closest is text_files"),
        (["dataset=contiguous"], "dataset=contiguous arranges documents, and task=flip_flop has none"),
    ],
)
def test_groups_that_nothing_takes(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        build(compose(overrides))
    assert says in str(error.value)
