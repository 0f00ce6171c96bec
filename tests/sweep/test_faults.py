"""A job that runs out of memory, or dies before it can say why, costs itself only, and its cause is told."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lcbench.engine.faults import cause_of
from tests.conftest import TINY
from tests.test_sweep import records

#: address space: enough for a small job, too little for a batch of 20,000 at width 512
LIMIT = 8 * 2**30
WIDE = [*(word for word in TINY if not word.startswith("model.d_model")), "model.d_model=512", "position=none"]


def limited(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lcbench", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )


def test_a_job_without_memory_costs_itself_only(tmp_path):
    done = limited(tmp_path, "-m", *WIDE, "trainer.max_steps=1", "trainer.batch_size=8,20000")
    screen = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 2 runs completed" in screen
    assert "Traceback" not in done.stdout + done.stderr
    found = records(tmp_path / "outputs")
    (name,) = (name for name, record in found.items() if record["status"] == "failed")
    assert found[name]["error"].startswith("out of memory while training")
    assert "trainer.batch_size" in found[name]["error"]
    assert "out of memory while training" in screen
    log = next((tmp_path / "outputs").rglob(f"{name}/run.log")).read_text()
    assert "Traceback" in log


def test_scoring_without_memory_says_what_to_reduce_and_continues_with_less(tmp_path):
    words = [*WIDE, "trainer.max_steps=1", "evaluation.examples=20000", "evaluation.sets=[in_distribution]"]
    done = limited(tmp_path, *words, "evaluation.batch_size=20000")
    assert done.returncode == 1, done.stdout + done.stderr
    (record,) = records(tmp_path / "outputs").values()
    assert record["error"].startswith("out of memory while scoring")
    assert "evaluation.batch_size" in record["error"]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_is_named_whatever_lacks_it(error):
    cause = cause_of(error)
    assert cause is not None
    assert cause.startswith("out of memory while training")
    assert ("2.00 GiB" in cause) == isinstance(error, torch.OutOfMemoryError)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert cause_of(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert cause_of(ValueError("out of memory")) is None
    assert cause_of(OSError(2, "No such file or directory")) is None


#: imported by every Python process before anything else; a job sets its label in its environment first
CUSTOMIZE = """
import resource, sys

def strike(event, arguments):
    if event != "os.putenv" or arguments[0] != b"WANDB_NAME":
        return
    if arguments[1] == b"seed=1":
        sys.modules["lcbench.composition"] = None
    if arguments[1] == b"seed=2":
        import ctypes
        ctypes.string_at(0)
    if arguments[1] == b"seed=3":
        resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))

sys.addaudithook(strike)
"""


def test_a_process_that_dies_before_it_can_say_why_is_given_a_record(command, tmp_path, monkeypatch):
    import os

    (tmp_path / "sitecustomize.py").write_text(CUSTOMIZE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", str(Path(__file__).parents[2]))])
    done = command("-m", *TINY, "position=none", "seed=0,1,2,3", PYTHONPATH=path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 4 runs completed" in done.stdout
    found = {record["seed"]: (name, record) for name, record in records(tmp_path / "outputs").items()}
    expected = {
        1: ("ended with code 1: ModuleNotFoundError", "Traceback"),
        2: ("killed by signal 11 (SIGSEGV)", "Segmentation fault"),
        3: ("out of memory", "memory"),
    }
    for seed, (cause, word) in expected.items():
        name, record = found[seed]
        assert record["status"] == "failed"
        assert record["error"].startswith(cause)
        log = next((tmp_path / "outputs").rglob(f"{name}/run.log")).read_text()
        assert cause in log
        assert word in log
        assert cause[:40] in " ".join(done.stdout.split())
    # what is compared must be a whole record, although the run never began
    compared = command("compare", "outputs", "--json", "-")
    assert compared.returncode == 0, compared.stderr
    assert "no complete record" not in compared.stderr + compared.stdout
    json.loads(compared.stdout)
