"""Weights & Biases without an account: offline, read back with its own reader, and never in the way."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.conftest import TINY


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def inspect(folder, option):
    binary = next((folder / "wandb").glob("offline-run-*/*.wandb"))
    words = [sys.executable, "-m", "wandb", "leet", "inspect", option, "--json", str(binary)]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def test_an_offline_run_reads_back_as_the_record(run_here, no_account):
    result, folder, screen = run_here("logger=wandb")
    assert result["status"] == "completed"
    assert "W&B: offline, as no key is configured; to upload later: wandb sync" in screen
    summary = json.loads(inspect(folder, "--summary"))
    found = json.dumps(summary)
    for key in result:
        if key.startswith("scores/") and not key.endswith(("_low", "_high", "_n")):
            assert key in found, key
    assert result["scores/sparse/error"] == pytest.approx(lookup(summary, "scores/sparse/error"))


def lookup(summary, key):
    if isinstance(summary, dict):
        if key in summary:
            return summary[key]
        summary = list(summary.values())
    if isinstance(summary, list):
        for item in summary:
            if (found := lookup(item, key)) is not None:
                return found
    return None


def test_a_server_out_of_reach_means_offline_soon(command):
    began = time.monotonic()
    done = command(
        *[word for word in TINY if not word.startswith("logger")],
        "logger.timeout=3",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "offline, as the server did not take the run" in done.stdout
    assert time.monotonic() - began < 90


def test_a_failed_run_is_closed_as_failed(run_here, no_account):
    result, folder, _ = run_here("logger=wandb", "optimizer.lr=1e30", "trainer.max_steps=20")
    assert result["status"] == "failed"
    assert "failed" in inspect(folder, "--summary")


def test_without_it_wandb_is_never_imported(command):
    code = f"""
import sys
from lcbench.cli import main
code = main({[*TINY, "trainer.max_steps=2"]!r})
assert code == 0
assert "wandb" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_sweep_agent_variables_do_not_leak_into_a_run(run_here, no_account, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "agents-own-run")
    _, folder, _ = run_here("logger=wandb")
    assert (folder / "wandb" / "id").read_text() != "agents-own-run"
    assert not list((folder / "wandb").glob("*agents-own-run*"))
