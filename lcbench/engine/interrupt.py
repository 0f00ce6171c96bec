"""Signals ask a run, or a sweep, to stop between two steps, with its checkpoint written.

Ctrl-C ends with exit code 130; a second one stops at once. SIGTERM, SIGUSR1 and SIGUSR2 are a cluster that takes its
machine back after a grace period: they end with 75 (EX_TEMPFAIL), which SLURM requeues where slurm.conf has
``RequeueExit=75``. The two user signals (``sbatch --signal=USR1@120``) say besides that the job is wanted back, so
inside a SLURM job they requeue it; SIGTERM may be scancel's, and does not.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console

#: a machine that is taken back; the user's signals say more than SIGTERM, with which they may come together
PREEMPTION = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: sysexits.h: a temporary failure, worth another try
EX_TEMPFAIL = 75
#: prctl's option: the signal this process gets when its parent ends
PR_SET_PDEATHSIG = 1


class Interrupted(SystemExit):
    """Somebody asked to stop. Caught by nobody, it ends the process with the right exit code.

    Args:
        number: the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.signal = signal.Signals(number)
        super().__init__(130 if self.signal == signal.SIGINT else EX_TEMPFAIL)

    @property
    def cause(self) -> str:
        """For the record."""
        name = "Ctrl-C" if self.signal == signal.SIGINT else self.signal.name
        return f"stopped by {name}; the same command continues"


class StopRequest:
    """Turns signals into a request while it is entered.

    Args:
        console: where the request is confirmed.
        what: what happens before the stop.
    """

    def __init__(self, console: Console, what: str = "stopping after this step") -> None:
        self.console, self.what = console, what
        self.requested: signal.Signals | None = None
        self._at_once = True
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, *PREEMPTION)}
            self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals, also back from a library that took them meanwhile."""
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, ctrl_c = self.requested is None, number == signal.SIGINT
        if first or (self.requested == signal.SIGTERM and not ctrl_c):
            self.requested = signal.Signals(number)
        if first:
            name = "" if ctrl_c else f"{signal.Signals(number).name}: "
            self.console.print(f"{name}{self.what}{'; Ctrl-C again stops at once' if ctrl_c else ''}")
        elif ctrl_c and self._at_once:
            raise Interrupted(number)

    def check(self) -> None:
        """Obey a request.

        Raises:
            Interrupted: if there is one.
        """
        if self.requested is not None:
            raise Interrupted(self.requested)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """What is done within is not broken off by a second Ctrl-C either."""
        self._at_once = False
        yield
        self._at_once = True

    def pass_on(self) -> None:
        """Hand a request on to whoever handled the signal before, such as a cluster's launcher that requeues its job.

        Raises:
            Interrupted: if there is a request and nobody else ended the process.
        """
        if self.requested is None:
            return
        handler = self._before.get(self.requested)
        if callable(handler):
            handler(self.requested, None)
        raise Interrupted(self.requested)


@contextmanager
def preemptible() -> Iterator[None]:
    """Within, while nothing runs yet or any more, a machine that is taken back ends the process.

    Raises:
        Interrupted: from wherever the process is.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        print(f"lcbench: stopped by {signal.Signals(number).name}", file=sys.stderr)
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in PREEMPTION}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def requeue(stopped: Interrupted) -> None:
    """Ask SLURM to run this job again, where a user's signal ended it and nobody else asks.

    The requeue ends the job at once, so it comes after everything else.
    """
    job, program = os.environ.get("SLURM_JOB_ID"), shutil.which("scontrol")
    wanted_back = stopped.signal in (signal.SIGUSR1, signal.SIGUSR2)
    if not wanted_back or not job or not program or "SUBMITIT_EXECUTOR" in os.environ:
        return
    done = subprocess.run([program, "requeue", job], capture_output=True, text=True)
    said = f"job {job} is queued again" if done.returncode == 0 else f"SLURM did not requeue: {done.stderr.strip()}"
    print(f"lcbench: {said}", file=sys.stderr)


def end_with_parent() -> None:
    """From now on this process ends when its parent does, however that ends.

    Forked from multiprocessing's server, its parent is that server, which ends with the command: one that is killed
    while this process begins leaves nothing to notice but that it is gone.
    """
    parent, command = os.getppid(), multiprocessing.parent_process()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if os.getppid() != parent or (command and not command.is_alive()):  # it ended before this process could say so
        os.kill(os.getpid(), signal.SIGKILL)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)
