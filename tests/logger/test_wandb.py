"""Weights & Biases without an account: offline, read back with its own reader, and never in the way."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from lcbench.results.record import scores_of
from tests.conftest import TINY


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def binary_of(folder, number=0):
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))[number]


def inspect(binary, *options):
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(binary)]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def test_an_offline_run_reads_back_as_the_record(run_here, no_account):
    result, folder, screen = run_here("logger=wandb", "tags=[first,try]")
    assert "W&B: offline, as no key is configured; to upload later: wandb sync" in screen
    found = json.loads(inspect(binary_of(folder), "--summary"))
    assert (found["state"], found["exit_code"], found["project"]) == ("finished", 0, "lcbench")
    assert found["name"] == folder.name
    assert found["tags"] == [
        "first",
        "try",
        "task=flip_flop",
        "model=decoder",
        "attention=full",
        "position=cope",
    ]
    assert found["config"] == yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in json.loads((folder / "result.json").read_text()).items():
        if value is not None and not key.startswith("config/"):
            assert found["summary"][key] == pytest.approx(value), key
    assert found["summary"]["scores"]["nrows"] == len(scores_of(result))


def test_curves_stand_against_the_trainers_step(run_here, no_account):
    _, folder, _ = run_here("logger=wandb")
    records = [json.loads(line) for line in inspect(binary_of(folder)).splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    curves = [item for item in history if "train/loss" in item]
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [item["trainer/global_step"] for item in curves] == [int(row["step"]) for row in rows]
    for item, row in zip(curves, rows, strict=True):
        assert item["train/loss"] == pytest.approx(float(row["loss"]))
        assert str(item.get("evaluation/error", "")) == row["evaluation_error"]


def test_a_continued_run_keeps_its_id(run_here, no_account, monkeypatch):
    from lcbench.engine.callbacks import Curves

    original = Curves._row

    def interrupting(self, module, step, light):
        original(self, module, step, light)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Curves, "_row", interrupting)
        stopped, folder, _ = run_here("logger=wandb")
    assert stopped["status"] == "interrupted"
    completed, _, _ = run_here("logger=wandb")
    assert completed["status"] == "completed"
    first, second = (json.loads(inspect(binary_of(folder, i), "--summary")) for i in range(2))
    assert first["run_id"] == second["run_id"]
    assert (first["exit_code"], second["exit_code"]) == (130, 0)


def test_a_killed_service_costs_nothing_that_the_record_holds(command, tmp_path):
    killer = tmp_path / "sitecustomize.py"
    killer.write_text(
        "import os, signal, subprocess\n"
        "import lcbench.engine.callbacks as callbacks\n"
        "original = callbacks.Curves._row\n"
        "def killing(self, module, step, light):\n"
        "    original(self, module, step, light)\n"
        "    if step == 2:\n"
        "        found = subprocess.run(['pgrep', '-P', str(os.getpid())], capture_output=True, text=True)\n"
        "        for child in map(int, found.stdout.split()):\n"
        "            name = open(f'/proc/{child}/cmdline').read() if os.path.exists(f'/proc/{child}') else ''\n"
        "            if 'wandb' in name:\n"
        "                os.kill(child, signal.SIGKILL)\n"
        "                open('killed', 'w').close()\n"
        "callbacks.Curves._row = killing\n"
    )
    words = [word for word in TINY if not word.startswith("logger")]
    done = command(*words, PYTHONPATH=str(tmp_path))
    assert (tmp_path / "killed").exists(), "the service was not found"
    record = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert record["status"] == "completed", done.stdout + done.stderr
    assert done.returncode == 0
    assert len(next(tmp_path.rglob("metrics.csv")).read_text().splitlines()) == 5
    assert record["scores/sparse/sequence_error_n"] == 64


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
    found = json.loads(inspect(binary_of(folder), "--summary"))
    assert (found["exit_code"], found["summary"]["status"]) == (1, "failed")


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
    assert json.loads((folder / "wandb" / "page.json").read_text())["id"] != "agents-own-run"
    assert not list((folder / "wandb").glob("*agents-own-run*"))
