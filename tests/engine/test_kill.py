"""Killed again and again at random moments, a run ends as if nothing had happened."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lcbench.engine.callbacks import load_checkpoint
from tests.conftest import TINY

KILLS = 20
STEPS = 4000
WORDS = [
    *TINY,
    "position=rope",
    "model.dropout=0.1",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every=1",
    "trainer.evaluate_every=50",
    "trainer.checkpoint_every=3",
    "trainer.threads=1",
]


def start(folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "lcbench", *WORDS]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rows(folder: Path) -> list[dict[str, str]]:
    found = list(folder.rglob("metrics.csv"))
    return list(csv.DictReader(found[0].open())) if found else []


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_twenty_kills_change_nothing(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    rng = random.Random(0)
    for _ in range(KILLS):
        before = len(rows(parts))
        process = start(parts)
        deadline = time.monotonic() + 60
        while process.poll() is None and len(rows(parts)) in (0, before):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.1))
        assert process.poll() is None, "the run ended before it was killed often enough"
        process.kill()
        process.wait()
    assert start(parts).wait(timeout=120) == 0
    assert start(whole).wait(timeout=120) == 0

    (a,), (b,) = (list(folder.rglob("last.ckpt")) for folder in (whole, parts))
    first, second = load_checkpoint(a), load_checkpoint(b)
    assert first["global_step"] == second["global_step"] == STEPS
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(first[part], second[part]), part
    assert [int(row["step"]) for row in rows(parts)] == list(range(1, STEPS + 1))
    for column in ("loss", "evaluation_error", "tokens", "learning_rate"):
        assert [row[column] for row in rows(whole)] == [row[column] for row in rows(parts)]
    records = [json.loads(next(folder.rglob("result.json")).read_text()) for folder in (whole, parts)]
    scores = [{k: v for k, v in record.items() if k.startswith("scores/")} for record in records]
    assert scores[0] == scores[1]
    assert [path.name for path in b.parents[1].rglob(".*")] == [".lock"]
    assert scores[0]
