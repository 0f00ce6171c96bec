"""Sweeps as a user runs them: one job's end is its own, and the same command goes on where the last one stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import TINY


def records(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.rglob("result.json")}


def written(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.rglob("result.json")}


def test_a_sweep_runs_every_combination_once(command, tmp_path):
    words = ["-m", *TINY, "trainer.max_steps=2", "position=none,rope", "seed=0,1"]
    first = command(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "4 of 4 runs completed" in first.stdout
    found = records(tmp_path / "outputs")
    assert len(found) == 4
    assert {record["status"] for record in found.values()} == {"completed"}
    assert sorted(record["seed"] for record in found.values()) == [0, 0, 1, 1]
    before = written(tmp_path / "outputs")
    second = command(*words)
    assert second.returncode == 0
    assert "4 of 4 runs completed" in second.stdout
    assert written(tmp_path / "outputs") == before


def test_a_bad_job_costs_itself_only_and_is_retried_on_request(command, tmp_path):
    words = ["-m", *TINY, "trainer.max_steps=20", "optimizer.lr=1e-3,1e30", "model.n_heads=2,3", "position=none"]
    done = command(*words)
    assert done.returncode == 1
    assert "1 of 4 runs completed" in done.stdout
    assert "last finite loss" in " ".join(done.stdout.split())
    assert "does not divide" in " ".join(done.stdout.split())
    found = records(tmp_path / "outputs")
    assert sorted(record["status"] for record in found.values()) == ["completed", "failed", "failed", "failed"]
    refused = [record for record in found.values() if record["experiment"] == "refused"]
    assert len(refused) == 2
    before = written(tmp_path / "outputs" / "flip_flop")
    assert command(*words).returncode == 1
    assert written(tmp_path / "outputs" / "flip_flop") == before
    assert command(*words, "retry=true").returncode == 1
    changed = {name for name, stamp in written(tmp_path / "outputs" / "flip_flop").items() if stamp != before[name]}
    assert [found[name]["status"] for name in changed] == ["failed"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "LCBENCH"))}
    return subprocess.Popen(
        [sys.executable, "-m", "lcbench", "-m", *TINY, "trainer.log_every=1", "position=none", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(folder: Path, jobs: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while sum(len(p.read_text().splitlines()) > 3 for p in folder.rglob("metrics.csv")) < jobs:
        assert time.monotonic() < deadline, "no step in two minutes"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def jobs_of(process: subprocess.Popen[str]) -> list[int]:
    """The jobs of a sweep, which are forked by a server that the sweep has started."""

    def below(pids: list[int]) -> list[int]:
        found = subprocess.run(["pgrep", "-P", ",".join(map(str, pids))], capture_output=True, text=True)
        return [int(line) for line in found.stdout.split()]

    return below(below([process.pid]))


def test_a_killed_job_is_recorded_by_its_sweep(tmp_path):
    process = start(tmp_path, "trainer.max_steps=1000000", "seed=7")
    wait_for_steps(tmp_path, 1, process)
    (child,) = jobs_of(process)
    os.kill(child, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "SIGKILL" in output
    (record,) = records(tmp_path / "outputs").values()
    assert record["status"] == "failed"
    assert record["error"].startswith("killed by signal 9")
    assert record["seed"] == 7


def test_ctrl_c_stops_every_job_leaves_no_orphan_and_the_same_command_continues(tmp_path):
    process = start(tmp_path, "trainer.max_steps=1200", "seed=0,1,2")
    wait_for_steps(tmp_path, 1, process)
    children = jobs_of(process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    found = records(tmp_path / "outputs")
    assert "interrupted" in {record["status"] for record in found.values()} <= {"interrupted", "running"}
    again = start(tmp_path, "trainer.max_steps=1200", "seed=0,1,2")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert {record["status"] for record in records(tmp_path / "outputs").values()} == {"completed"}
    assert any("continuing after step" in path.read_text() for path in tmp_path.rglob("run.log"))
