"""What several tests share: the smallest run, and the command as a user types it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

TINY = (
    "task=flip_flop",
    "task.length=16",
    "model.d_model=16",
    "model.n_heads=2",
    "model.n_layers=1",
    "trainer.max_steps=6",
    "trainer.batch_size=8",
    "trainer.evaluate_every=3",
    "trainer.log_every=2",
    "evaluation.examples=64",
    "evaluation.light_examples=32",
    "logger=none",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-composition", action="store_true", help="certify every mechanism with every encoding")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--every-composition"):
        left_out = [item for item in items if item.get_closest_marker("every_composition")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts are kept for the session, and not in the user's own cache."""
    place = tmp_path_factory.getbasetemp() / "lcbench-cache"
    os.environ["LCBENCH_CACHE"] = str(place)
    return place


@pytest.fixture
def run_here(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Path, str]]:
    """Runs overrides on top of a tiny experiment (or of ``base``); returns the record, the folder and the screen."""

    def run(*overrides: str, base: Sequence[str] = TINY) -> tuple[dict[str, Any], Path, str]:
        from lcbench.composition import build, compose
        from lcbench.engine.run import folder_of
        from lcbench.engine.run import run as run_experiment

        experiment = build(compose([*base, f"outputs={tmp_path}", *overrides]))
        screen = io.StringIO()
        result = run_experiment(experiment, Console(file=screen, width=200))
        return result, folder_of(experiment).path, screen.getvalue()

    return run


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Calls ``lcbench`` in a process of its own, in an empty folder and without an account."""

    def call(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "LCBENCH"))}
        kept = {"LCBENCH_CACHE": os.environ["LCBENCH_CACHE"]}
        environment |= {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **kept, **variables}
        return subprocess.run(
            [sys.executable, "-m", "lcbench", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call
