"""Runs to look into, trained once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from lcbench.composition import build, compose
from lcbench.engine.experiment import folder_of
from lcbench.engine.run import run

SMALL = ("model.d_model=16", "model.n_heads=2", "model.n_layers=2", "trainer.device=cpu", "trainer.batch_size=8")
SHORT = (*SMALL, "trainer.max_steps=6", "evaluation.examples=8", "evaluation.light_examples=4", "logger=none")


def trained(outputs: Path, *words: str) -> Path:
    """The folder of a small run."""
    experiment = build(compose([*SHORT, *words, f"outputs={outputs}"]))
    result = run(experiment, Console(quiet=True))
    assert result["status"] == "completed", result["error"]
    return folder_of(experiment).path


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with characters of one to four bytes, mark-up and what turns text around."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        lines = [f"<b>né {number}</b> & \N{SNOWMAN} \N{GRINNING FACE}\t{k}\u202e\x1b[31m" for k in range(8)]
        (folder / f"{number}.txt").write_text("\n".join(lines), newline="")
    return folder


@pytest.fixture(scope="session")
def flip_flop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("flip_flop"), "task=flip_flop", "task.length=16", "position=cope")


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    words = ("task=language_modelling", "corpus=text_files", f"corpus.path={texts}", "task.length=32", "position=rope")
    return trained(tmp_path_factory.mktemp("text"), *words, "attention=infini", "attention.segment=8")


@pytest.fixture(scope="session")
def landmark_run(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    words = ("task=language_modelling", "corpus=text_files", f"corpus.path={texts}", "task.length=32", "position=rope")
    landmark = (
        "attention=landmark",
        "attention.block=4",
        "attention.window=16",
        "dataset=landmark",
        "dataset.block=4",
    )
    return trained(tmp_path_factory.mktemp("landmark"), *words, *landmark)
