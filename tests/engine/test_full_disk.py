"""A really full disk: a small file system in memory, where this machine lets one be mounted.

Room is taken away at every stage of a run; it says so in one sentence or goes on without what it cannot write, earlier
files stay whole, and the same command finishes once there is room.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lcbench.engine.callbacks import load_checkpoint
from tests.conftest import TINY

SIZE = 4 * 2**20


@pytest.fixture
def disk(tmp_path):
    """A disk of SIZE bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets no file system be mounted")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, spare: int = 0) -> None:
    """Leave ``spare`` bytes, rounded down to pages."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
        file.truncate(max(0, (file.tell() - spare) // 4096 * 4096))


def when(disk: Path, run_here, monkeypatch, moment: tuple[type, str], spare: int = 0):
    """A run on the disk, which is full from the first call of ``moment`` on."""
    owner, name = moment
    original = getattr(owner, name)

    def filling(self, *words, **named):
        if not (disk / "filler").exists():
            fill(disk, spare)
        return original(self, *words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, filling)
        return run_here(*LONGER, f"outputs={disk}/outputs")


LONGER = ("trainer.checkpoint_every=2", "trainer.log_every=1")


def moments() -> dict[str, tuple[type, str]]:
    from lcbench.engine.callbacks import CheckpointFiles, Curves
    from lcbench.engine.run import _Run

    return {
        "opening": (_Run, "_open"),
        "curves": (Curves, "_row"),
        "checkpoint": (CheckpointFiles, "save_checkpoint"),
        "scoring": (_Run, "_score"),
        "record": (_Run, "_close"),
    }


@pytest.mark.parametrize("moment", ["opening", "curves", "checkpoint", "scoring", "record"])
@pytest.mark.parametrize("spare", [0, 12_000])
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    disk, run_here, monkeypatch, tmp_path, moment, spare, capfd
):
    whole, whole_folder, _ = run_here(*LONGER, f"outputs={tmp_path}/whole")
    result, folder, screen = when(disk, run_here, monkeypatch, moments()[moment], spare)
    errors = capfd.readouterr().err
    assert "Traceback" not in screen + errors
    said = " ".join(screen.split())
    if result["status"] == "failed":
        assert "no room to write" in result["error"]
        assert "no room to write" in said
    else:
        # nothing was lost but perhaps the record itself, which says so
        written = json.loads((folder / "result.json").read_text())
        assert written == result or "the record could not be written" in said
    for path in folder.glob("checkpoints/[!.]*.ckpt"):
        load_checkpoint(path)
    assert not list(folder.rglob(".*.ckpt*"))
    if (folder / "result.json").exists():
        json.loads((folder / "result.json").read_text())

    (disk / "filler").unlink()
    again, same, _ = run_here(*LONGER, f"outputs={disk}/outputs")
    assert again["status"] == "completed"
    assert same == folder
    scores = [{k: v for k, v in record.items() if k.startswith("scores/")} for record in (whole, again)]
    assert scores[0] == scores[1]
    rows = [list(csv.DictReader((f / "metrics.csv").open())) for f in (whole_folder, folder)]
    assert [row["step"] for row in rows[1]] == [str(step) for step in range(1, 7)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_wandb_on_a_full_disk_costs_the_run_nothing_but_itself(disk, command, tmp_path, monkeypatch):
    """W&B writes from a process of its own."""
    base = [word for word in TINY if not word.startswith("logger=")]
    fill(disk, spare=250_000)
    words = [*base, "logger=wandb", "logger.mode=offline", "trainer.max_steps=600", "trainer.log_every=1"]
    done = command(*words, f"outputs={disk}/outputs", "trainer.checkpoint_every=1000000", "trainer.evaluate_every=0")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert os.statvfs(disk).f_bavail == 0, "the disk never got full"
    # the last word may have no room either: then the record says what it said before
    record = json.loads(next(disk.rglob("result.json")).read_text())
    assert record["status"] == "completed" if not done.returncode else record["status"] in ("failed", "running")
    assert not done.returncode or "no room to write" in " ".join(done.stdout.split())
    (disk / "filler").unlink()
    assert command(*words, f"outputs={disk}/outputs").returncode == 0


@pytest.mark.parametrize("spare", [0, 40_000])
def test_a_sweep_on_a_full_disk_ends_with_a_cause_for_every_job(disk, tmp_path, spare):
    fill(disk, spare)
    words = [*TINY, "position=none", "seed=0", f"outputs={disk}/outputs", "model.d_model=64"]
    start = [sys.executable, "-m", "lcbench", "-m", *words]
    done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert "no room" in " ".join((done.stdout + done.stderr).split()).lower()
    (disk / "filler").unlink()
    if not spare:
        return
    again = subprocess.run([*start, "retry=true"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stdout + again.stderr
