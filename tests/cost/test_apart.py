"""A process of its own costs itself only, and what became of it is told."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time

import pytest

from lcbench.cost.apart import BrokenOffError, OutOfMemoryError, apart
from lcbench.errors import ConfigurationError
from lcbench.lengths import parse_length
from lcbench.schema import locate
from tests.sweep.test_signals import alive


def test_the_answer_comes_back() -> None:
    assert apart(parse_length, "64k") == 64_000
    assert apart(os.getpid) not in (os.getpid(), apart(os.getpid))


def test_a_refusal_is_the_users_and_a_failure_names_its_place() -> None:
    with pytest.raises(ConfigurationError, match="no_such_module"):
        apart(locate, "no_such_module.Name", "_target_")
    with pytest.raises(BrokenOffError, match="ZeroDivisionError: "):
        apart(operator.truediv, 1, 0)


def test_a_lack_of_memory_is_told_from_other_ends() -> None:
    with pytest.raises(OutOfMemoryError, match="no more memory"):
        apart(bytearray, 2**62)
    with pytest.raises(OutOfMemoryError, match="killed by the system"):
        apart(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(BrokenOffError, match="ended with code 3"):
        apart(os._exit, 3)


def test_what_takes_too_long_is_broken_off() -> None:
    began = time.monotonic()
    with pytest.raises(BrokenOffError, match="took more than 1 s"):
        apart(time.sleep, 60, seconds=1)
    assert time.monotonic() - began < 50


def test_a_killed_command_leaves_no_process_behind():
    """Neither what measures nor the server that it was forked from."""
    code = "import time; from lcbench.cost.apart import apart; apart(time.sleep, 600)"
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while len(found := below(below([process.pid]))) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found += below([process.pid])
    process.kill()
    process.wait()
    while alive(found):
        assert time.monotonic() < deadline, f"orphans: {alive(found)}"
        time.sleep(0.05)


def below(pids: list[int]) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", ",".join(map(str, pids))], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]
