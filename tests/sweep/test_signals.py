"""A sweep that is stopped or killed takes its jobs with it, and the same command ends as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcbench.engine.callbacks import load_checkpoint
from tests.engine.test_kill import equal
from tests.test_sweep import jobs_of, records, start, wait_for_steps


def alive(pids: list[int]) -> list[int]:
    """Those that run: what nobody has waited for yet counts as ended."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        found += [pid] if state not in "ZX" else []
    return found


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while alive(pids):
        assert time.monotonic() < deadline, f"orphans: {alive(pids)}"
        time.sleep(0.02)


def test_a_preempted_sweep_starts_no_more_and_waits_for_checkpoints(tmp_path):
    process = start(tmp_path, "trainer.max_steps=1000000", "seed=0,1,2,3,4,5")
    wait_for_steps(tmp_path, 1, process)
    jobs = jobs_of(process)
    # as a cluster does, to whatever it started: the server that jobs are forked from is among them
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "Traceback" not in output
    assert not alive(jobs)
    found = records(tmp_path / "outputs")
    assert len(found) <= len(jobs)
    stopped = [name for name, record in found.items() if record["status"] == "interrupted"]
    assert stopped
    for name in stopped:
        folder = tmp_path / "outputs" / "flip_flop" / name
        assert json.loads((folder / "result.json").read_text())["signal"] == "SIGTERM"
        rows = list(csv.DictReader((folder / "metrics.csv").open()))
        assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == int(rows[-1]["step"])


def test_a_second_ctrl_c_ends_a_sweep_at_once(tmp_path):
    process = start(tmp_path, "trainer.max_steps=1000000", "seed=0,1")
    wait_for_steps(tmp_path, 1, process)
    jobs = jobs_of(process)
    for job in jobs:  # they cannot stop by themselves
        os.kill(job, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not alive(jobs)
    assert {record["status"] for record in records(tmp_path / "outputs").values()} == {"interrupted"}


WORDS = (
    "trainer.max_steps=600",
    "trainer.checkpoint_every=15",
    "trainer.evaluate_every=100",
    "model.dropout=0.1",
    "trainer.threads=1",
)


def test_a_sweep_killed_twice_ends_as_if_it_had_not_been(tmp_path, run_here):
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    parts.mkdir()
    before = 0
    for _ in range(2):
        process = start(parts, *WORDS, "seed=0,1")
        deadline = time.monotonic() + 120
        while progress(parts) < before + 80:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        before = progress(parts)
        jobs = jobs_of(process)
        assert jobs
        process.kill()
        process.communicate()
        wait_until_gone(jobs)
    process = start(parts, *WORDS, "seed=0,1")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    for seed in (0, 1):
        run_here("trainer.log_every=1", "position=none", *WORDS, f"seed={seed}", f"outputs={whole}/outputs")
    runs = sorted(path.parent.relative_to(parts) for path in parts.rglob("result.json"))
    assert len(runs) == 2
    for run in runs:
        assert "continuing after step" in (parts / run / "run.log").read_text()
        first, second = (load_checkpoint(f / run / "checkpoints" / "last.ckpt") for f in (whole, parts))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert equal(first[part], second[part]), part
        scores = [json.loads((f / run / "result.json").read_text()) for f in (whole, parts)]
        one, other = ({k: v for k, v in record.items() if k.startswith("scores/")} for record in scores)
        assert one == other
        assert one
        rows = [list(csv.DictReader((f / run / "metrics.csv").open())) for f in (whole, parts)]
        assert [int(row["step"]) for row in rows[1]] == list(range(1, 601))
        assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
        assert [path.name for path in (parts / run).rglob(".*")] == [".lock"]


def progress(folder: Path) -> int:
    return sum(max(0, len(path.read_text().splitlines()) - 1) for path in folder.rglob("metrics.csv"))


@pytest.mark.parametrize("number", [signal.SIGUSR1])
def test_jobs_of_a_sweep_do_not_requeue_its_slurm_job_themselves(tmp_path, monkeypatch, number):
    from tests.engine.test_interrupt import scontrol

    said = scontrol(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    process = start(tmp_path, "trainer.max_steps=1000000", "seed=0,1")
    wait_for_steps(tmp_path, 1, process)
    # srun signals every process of the job
    for pid in [*jobs_of(process), process.pid]:
        os.kill(pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert said.read_text() == "requeue 4711\n"


def test_a_job_outlives_no_sweep_that_ended_before_it_could_say_so():
    """The parent is another one as soon as the process has asked to end with it."""
    code = """
import os
from lcbench.engine.interrupt import end_with_parent

parents = iter([2, 1])
os.getppid = lambda: next(parents)
end_with_parent()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
