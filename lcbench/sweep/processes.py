"""Jobs as processes: started as cores get free, watched, stopped together, and buried with a record of their cause."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lcbench.engine.faults import REDUCE_TRAINING, cause_of, says_no_memory
from lcbench.engine.interrupt import EX_TEMPFAIL, Interrupted, StopRequest
from lcbench.errors import ConfigurationError, no_room
from lcbench.logger.wandb import AGENT_VARIABLES
from lcbench.sweep import forked
from lcbench.sweep.board import Board

if TYPE_CHECKING:
    from lcbench.sweep.jobs import Job

#: seconds between two looks at the running jobs
LOOK_EVERY = 0.1
#: how much of a dead process's console goes into run.log
CONSOLE_BYTES = 2**16


def launch(jobs: list[Job], console: Console, cores: int | None = None) -> None:
    """Run the waiting jobs, as many at a time as there are ``cores`` (None: usable here); ends when all have ended.

    A signal to stop is forwarded to the running jobs, which write their checkpoints; those that wait do not start. A
    second Ctrl-C ends them at once. However this process ends, also by kill -9, the jobs end with it.

    Raises:
        Interrupted: after a signal, unless who handled it before ends the process in another way.
    """
    waiting = [job for job in jobs if job.status == "waiting"]
    cores = cores or usable_cores()
    at_a_time = max(1, min(cores, len(waiting)))
    threads = max(1, cores // at_a_time)
    running: list[Job] = []
    forwarded = False
    with StopRequest(console, "stopping the jobs after their steps") as stop:
        try:
            with Board(console) as board:
                while waiting or running:
                    if stop.requested and not forwarded:
                        forwarded = True
                        waiting.clear()
                        for job in running:
                            _signal(job, stop.requested)
                    while waiting and len(running) < at_a_time and not stop.requested:
                        job = waiting.pop(0)
                        try:
                            _start(job, threads)
                        except OSError as error:
                            job.status, job.error = "failed", cause_of(error) or f"{type(error).__name__}: {error}"
                            continue
                        running.append(job)
                    board.look(jobs)
                    time.sleep(LOOK_EVERY)
                    for job in [job for job in running if _process(job).exitcode is not None]:
                        running.remove(job)
                        _bury(job, stop.requested)
                    board.look(jobs)
        finally:
            for job in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(_pid(job), signal.SIGKILL)
                _process(job).kill()  # it may not have its group yet
                _process(job).join()
                _bury(job, stop.requested)
    stop.pass_on()


def usable_cores() -> int:
    """Those that this process may use, which a cluster or a container can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _process(job: Job) -> ForkServerProcess:
    assert job.process is not None
    return job.process


def _pid(job: Job) -> int:
    pid = _process(job).pid
    assert pid is not None
    return pid


def _signal(job: Job, number: signal.Signals) -> None:
    if _process(job).exitcode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(_pid(job), number)


def _start(job: Job, threads: int) -> None:
    overlays = [f"--config-dir={path}" for path in job.overlays]
    job.folder.path.mkdir(parents=True, exist_ok=True)
    job.stamp = _stamp(job.folder.result)
    _console_log(job).write_bytes(b"")
    words = [*overlays, *job.overrides, "trainer.progress=false"]
    job.process = forked.start(words, _console_log(job), _environment(job, threads), threads)
    job.status = "running"


def _environment(job: Job, threads: int) -> dict[str, str]:
    """This process's, without a W&B agent's run, which is not the job's."""
    inherited = {name: value for name, value in os.environ.items() if name not in AGENT_VARIABLES}
    # for what the job starts itself
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**inherited, **counts, **job.variables}


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever the file is written, as writing replaces it."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _console_log(job: Job) -> Path:
    return job.folder.path / "console.log"


def _bury(job: Job, stopped_by: signal.Signals | None) -> None:
    """Take over how the job ended from its record, and write the record of one that could not."""
    code = _process(job).exitcode
    assert code is not None
    written = _stamp(job.folder.result) != job.stamp
    try:
        record: dict[str, Any] = job.folder.read_result()
    except (ConfigurationError, OSError):
        record = {}
    if written and record.get("status") in ("completed", "failed", "interrupted"):
        job.status, job.error = record["status"], record.get("error")
    elif stopped_by is not None or code in (130, EX_TEMPFAIL):
        stopped = Interrupted(stopped_by or signal.SIGTERM)
        job.status, job.error = "interrupted", stopped.cause
        if written:
            _write(job, record | {"status": "interrupted", "error": stopped.cause, "signal": stopped.signal.name})
    elif code == 2:
        # it refused to begin; a record that stands there is another process's
        lines = _screen(job).splitlines()
        job.status, job.error = "failed", lines[-1].removeprefix("lcbench: ") if lines else "refused"
        if not record:
            _write_death(job, record)
    else:
        job.status, job.error = "failed", _cause(code, _screen(job))
        if record.get("status") != "completed":
            _write_death(job, record)


def _write_death(job: Job, record: dict[str, Any]) -> None:
    # a process that found no room to write had none for its last words either
    job.error = _write(job, {**job.facts, **record, "status": "failed", "error": job.error}) or job.error
    with contextlib.suppress(OSError), job.folder.log.open("a") as log:
        log.write(f"{job.error}; what the process had to say:\n{_screen(job)}\n")


def _write(job: Job, record: dict[str, Any]) -> str | None:
    """Write the record; returns why it could not be written."""
    try:
        job.folder.write_result(record)
    except OSError as error:
        return no_room(error) or str(error)
    return None


def _screen(job: Job) -> str:
    try:
        return _console_log(job).read_bytes()[-CONSOLE_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""


def _cause(code: int, screen: str) -> str:
    """One sentence on a process that could not write its own."""
    last = next((line for line in reversed(screen.splitlines()) if line.strip()), "")
    if code == -signal.SIGKILL:
        return (
            "killed by signal 9 (SIGKILL), usually by the machine's out-of-memory killer: run fewer jobs at a time, "
            f"or {REDUCE_TRAINING}"
        )
    if code < 0:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    if says_no_memory(screen) or "MemoryError" in screen:
        return f"out of memory ({last.strip()[:120]}): {REDUCE_TRAINING}"
    return f"ended with code {code}{': ' + last.strip() if last else ''}"
