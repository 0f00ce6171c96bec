"""What survives damaged files, a second process and a full disk."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from lcbench.engine.callbacks import load_checkpoint
from lcbench.errors import ConfigurationError
from lcbench.results.record import RunFolder
from tests.conftest import TINY

LONGER = ("trainer.checkpoint_every=2", "trainer.evaluate_every=0")


def interrupted(run_here, monkeypatch, *overrides):
    """A run stopped after its fourth step, with checkpoints after the second and the fourth."""
    import os
    import signal

    from lcbench.engine.callbacks import Curves

    original = Curves._row

    def interrupting(self, module, step, light):
        original(self, module, step, light)
        if step >= 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Curves, "_row", interrupting)
        result, folder, _ = run_here(*LONGER, *overrides)
    assert result["status"] == "interrupted"
    return folder


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(run_here, monkeypatch, tmp_path, damage):
    whole, whole_folder, _ = run_here(*LONGER, f"outputs={tmp_path}/whole")
    folder = interrupted(run_here, monkeypatch, f"outputs={tmp_path}/parts")
    last = folder / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    last.unlink()
    last.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"x" * 1000, "empty": b""}[damage])
    resumed, _, screen = run_here(*LONGER, f"outputs={tmp_path}/parts")
    assert "last.ckpt cannot be read" in screen
    assert "continuing after step 2" in screen
    assert {k: v for k, v in resumed.items() if k.startswith("scores/")} == {
        k: v for k, v in whole.items() if k.startswith("scores/")
    }
    before = load_checkpoint(whole_folder / "checkpoints" / "last.ckpt")["state_dict"]
    after = load_checkpoint(last)["state_dict"]
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert load_checkpoint(folder / "checkpoints" / "previous.ckpt")["global_step"] >= 4


def test_a_damaged_record_is_said_and_the_run_continues(run_here, monkeypatch):
    folder = interrupted(run_here, monkeypatch)
    (folder / "result.json").write_text('{"status": "inter')
    resumed, _, screen = run_here(*LONGER)
    assert "result.json cannot be read" in screen
    assert "continuing after step 4" in screen
    assert resumed["status"] == "completed"


def test_a_checkpoint_with_code_in_it_is_not_run(run_here, monkeypatch, tmp_path):
    folder = interrupted(run_here, monkeypatch)

    class Payload:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'owned')!r}, 'w').close()",))

    for name in ("last.ckpt", "previous.ckpt"):
        (folder / "checkpoints" / name).unlink()
        torch.save({"global_step": 4, "payload": Payload()}, folder / "checkpoints" / name)
    resumed, _, screen = run_here(*LONGER)
    assert not (tmp_path / "owned").exists()
    assert "cannot be read" in screen
    assert resumed["status"] == "completed"


def test_the_second_process_on_a_run_says_so_and_leaves(run_here, monkeypatch):
    folder = interrupted(run_here, monkeypatch)
    before = (folder / "result.json").read_text()
    with (
        RunFolder(folder).held(),
        pytest.raises(ConfigurationError, match=r"is being computed already, by process \d+"),
    ):
        run_here(*LONGER)
    assert (folder / "result.json").read_text() == before
    assert run_here(*LONGER)[0]["status"] == "completed"


def test_no_room_is_one_sentence_and_earlier_files_stay(tmp_path):
    """A limit on file size, below that of a checkpoint, stands for a full disk."""
    code = f"""
import resource, sys
from lcbench.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
sys.exit(main({[*TINY, "trainer.checkpoint_every=1"]!r}))
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no room to write" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr
    record = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert record["status"] == "failed"
    assert not list(tmp_path.rglob(".last.ckpt*"))
    again = subprocess.run(
        [sys.executable, "-m", "lcbench", *TINY, "trainer.checkpoint_every=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 0, again.stdout + again.stderr
