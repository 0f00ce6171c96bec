"""A machine that is taken back: a checkpoint, the code that requeues, and SLURM asked where it should be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcbench.engine.callbacks import load_checkpoint
from lcbench.engine.interrupt import Interrupted, StopRequest, requeue
from tests.conftest import TINY

#: what srun sets; with it Lightning would take the signals and requeue
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


def scontrol(folder: Path) -> Path:
    """A program of that name that writes down how it was called; returns its record."""
    program = folder / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n')
    program.chmod(0o755)
    return folder / "asked"


@pytest.mark.parametrize(("number", "asked"), [(signal.SIGTERM, ""), (signal.SIGUSR1, "requeue 4711\n")])
def test_a_preempted_run_checkpoints_and_leaves_with_the_code_that_requeues(tmp_path, number, asked):
    said = scontrol(tmp_path)
    said.touch()
    words = [sys.executable, "-m", "lcbench", *TINY, "trainer.max_steps=100000", "trainer.log_every=1"]
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env={**os.environ, **SLURM, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not any(len(p.read_text().splitlines()) > 5 for p in tmp_path.rglob("metrics.csv")):
        assert time.monotonic() < deadline, "no step in two minutes"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "Traceback" not in output
    assert said.read_text() == asked
    folder = next(tmp_path.rglob("result.json")).parent
    record = json.loads((folder / "result.json").read_text())
    assert (record["status"], record["signal"]) == ("interrupted", number.name)
    assert record["error"] == f"stopped by {number.name}; the same command continues"
    last_row = (folder / "metrics.csv").read_text().splitlines()[-1]
    checkpoint = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == int(last_row.split(",")[0])
    # Lightning's own checkpoint for SLURM, and its own order to requeue, would stand here
    assert sorted(path.name for path in folder.iterdir() if "ckpt" in path.name) == []


def test_a_run_preempted_while_scoring_stops_there_and_continues(run_here, monkeypatch):
    from lcbench.engine.progress import Progress

    original = Progress.tick

    def preempted(self, done):
        original(self, done)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "tick", preempted)
        stopped, _, _ = run_here("evaluation.batch_size=8")
    assert (stopped["status"], stopped["signal"]) == ("interrupted", "SIGTERM")
    resumed, _, screen = run_here("evaluation.batch_size=8")
    assert resumed["status"] == "completed"
    assert "signal" not in resumed
    assert "continuing after step 6" in screen


def test_a_signal_before_the_first_step_is_not_lost_to_lightning(run_here, monkeypatch):
    """Between taking SIGTERM and the first step Lightning would end the run in its own way."""
    from lcbench.engine.module import TrainingModule

    original = TrainingModule.configure_optimizers

    def preempted(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "configure_optimizers", preempted)
        stopped, _, _ = run_here()
    assert (stopped["status"], stopped["signal"]) == ("interrupted", "SIGTERM")
    assert run_here()[0]["status"] == "completed"


def test_a_run_preempted_after_its_last_step_still_has_a_best_checkpoint(run_here, monkeypatch):
    from lcbench.engine.callbacks import Curves

    original = Curves._row

    def preempted(self, module, step, light):
        original(self, module, step, light)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Curves, "_row", preempted)
        stopped, folder, _ = run_here("trainer.evaluate_every=0")
    assert stopped["status"] == "interrupted"
    assert run_here("trainer.evaluate_every=0")[0]["status"] == "completed"
    assert load_checkpoint(folder / "checkpoints" / "best.ckpt")["global_step"] == 6


@pytest.mark.parametrize("moment", ["composing", "importing"])
def test_a_signal_before_there_is_a_run_ends_with_the_same_code(tmp_path, moment):
    where = {"composing": "lcbench.composition.build", "importing": "lcbench.cli._run"}[moment]
    module, _, name = where.rpartition(".")
    code = f"""
import os, signal, sys
import {module} as module
def preempted(*words, **named):
    os.kill(os.getpid(), signal.SIGUSR1)
module.{name} = preempted
from lcbench.cli import main
sys.exit(main({[*TINY]!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 75, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "stopped by SIGUSR1" in done.stderr


def test_slurm_is_asked_for_a_users_signal_only_and_not_beside_submitit(tmp_path, monkeypatch):
    said = scontrol(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    requeue(Interrupted(signal.SIGUSR1))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    requeue(Interrupted(signal.SIGTERM))
    requeue(Interrupted(signal.SIGINT))
    with monkeypatch.context() as patch:
        patch.setenv("SUBMITIT_EXECUTOR", "slurm")
        requeue(Interrupted(signal.SIGUSR2))
    assert not said.exists()
    requeue(Interrupted(signal.SIGUSR2))
    assert said.read_text() == "requeue 4711\n"


def test_who_handled_the_signal_before_gets_it_afterwards(capsys):
    from rich.console import Console

    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        for number in before:
            signal.signal(number, lambda number, frame: heard.append(number))
        stop = StopRequest(Console(quiet=True))
        with stop:
            # as SLURM sends them where send_user_signal is set: the second says that the job is wanted back
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert heard == []
        with pytest.raises(Interrupted) as caught:
            stop.pass_on()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGUSR2]
    assert caught.value.code == 75
