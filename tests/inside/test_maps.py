"""Maps in a run's folder are those of its layers, and its logger gets the figure."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import lcbench
from lcbench.attention.base import Context
from lcbench.cli import main
from lcbench.inside.figure import png
from tests.inside.conftest import trained


def test_files_hold_what_the_layers_look_at(flip_flop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("altair")
    assert main(["show", str(flip_flop), "--maps", "--set", "sparse", "--example=1"]) == 0
    printed = capsys.readouterr().out
    for kind in ("svg", "png", "npz"):
        assert f"maps/sparse-1.{kind}" in printed
    network = lcbench.load(flip_flop)
    task, model = network.experiment.task, network.model
    batch = task.rows("sparse", 8, network.experiment.evaluation.seed).take(1, 2)
    found = np.load(flip_flop / "maps" / "sparse-1.npz")
    assert found["tokens"].tolist() == [task.vocabulary[token] for token in batch.tokens[0].tolist()]
    time = batch.tokens.shape[1]
    inputs: list[torch.Tensor] = []
    handles = [a.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for a in model.attentions]
    with torch.no_grad():
        model(batch.tokens)
    for handle in handles:
        handle.remove()
    for layer, (attention, x) in enumerate(zip(model.attentions, inputs, strict=True)):
        looks = attention.looks(x, Context(torch.arange(time)[None]))
        np.testing.assert_allclose(found["weights"][layer], looks.weights[0], atol=1e-6)
        np.testing.assert_allclose(found["gates"][layer], looks.counts.gates[0], atol=1e-6)
        np.testing.assert_allclose(found["positions"][layer], looks.counts.positions[0], atol=1e-5)
    record = json.loads((flip_flop / "maps.json").read_text())
    assert (record["set"], record["example"], record["figure"]) == ("sparse", 1, "maps/sparse-1.svg")
    assert record["queries"] == [place for place, scored in enumerate(batch.scored[0].tolist()) if scored]
    for layer, heads in enumerate(record["layers"]):
        for head, kinds in enumerate(heads):
            for kind, rows in kinds.items():
                for query, row in zip(record["queries"], rows, strict=True):
                    whole = found[kind][layer, head, query]
                    np.testing.assert_allclose(row, whole[: query + 1], rtol=0.006, atol=0.001)
    ElementTree.parse(flip_flop / "maps" / "sparse-1.svg")
    assert (flip_flop / "maps" / "sparse-1.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_has_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    content, place, body = png(pixels), 8, b""
    while place < len(content):
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        data = content[place + 8 : place + 8 + size]
        assert struct.unpack(">I", content[place + 8 + size : place + 12 + size])[0] == zlib.crc32(kind + data)
        body += data if kind == b"IDAT" else b""
        place += 12 + size
    lines = np.frombuffer(zlib.decompress(body), np.uint8).reshape(5, 1 + 7 * 3)
    assert not lines[:, 0].any()
    np.testing.assert_array_equal(lines[:, 1:].reshape(5, 7, 3), pixels)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--maps"], "Infini has no map of weights"),
        (["--map"], "closest is --maps"),
        (["--maps", "--example", "-1"], "counted from 0"),
        (["--maps", "--example", "999999"], "counted from 0"),
        (["--maps", "--set", "sparse"], "sparse"),
        (["--set", "non_overlapping"], "add --document N or --maps"),
        (["--document", "0", "--example", "1"], "--example is which"),
        (["--document", "12"], "counted from 0"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(
    words: list[str], said: str, text_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(text_run), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_weights_and_biases_gets_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("altair")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = trained(tmp_path, "task=flip_flop", "task.length=16", "position=cope", "logger=wandb")
    assert main(["show", str(run), "--maps"]) == 0
    pages = []
    for folder in (run, run / "maps"):
        (binary,) = (folder / "wandb").glob("offline-run-*/*.wandb")
        words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(binary)]
        said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
        pages.append([json.loads(line) for line in said.splitlines()])
    first, second = (next(r["run"] for r in records if r["type"] == "run") for records in pages)
    assert first["run_id"] != second["run_id"]
    assert first["run_group"] == second["run_group"]
    items = [r["history"]["item"] for r in pages[1] if r["type"] == "history"]
    (logged,) = [item for item in items if any(key.startswith("maps/") for key in item)]
    (file,) = (run / "maps" / "wandb").rglob("*.html")
    assert (run / "maps" / "in_distribution-0.svg").read_text() in file.read_text()
    assert logged
