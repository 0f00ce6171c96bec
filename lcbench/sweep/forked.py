"""A job's process: forked from a server that has imported, once, what every run imports.

Importing takes seconds, about as long as a small run's first steps. The server is multiprocessing's fork server. It
imports while the sweep composes its jobs, computes nothing, and so has no threads that a fork would lose.
"""

from __future__ import annotations

import atexit
import faulthandler
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from lcbench.engine.interrupt import PREEMPTION, end_with_parent, preemptible

#: imported by the server: how it behaves, and what a run imports
PRELOADED = ["lcbench.sweep.preloaded", "lcbench.composition", "lcbench.engine.run"]
#: what the server keeps waiting
STOPS = (signal.SIGINT, *PREEMPTION)


def start_server() -> None:
    """Let the imports begin; does nothing where they have begun."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def start(words: Sequence[str], screen: Path, environment: dict[str, str], threads: int) -> ForkServerProcess:
    """The command ``lcbench WORDS`` in a process, and a process group, of its own.

    Args:
        words: of the command line.
        screen: the file that gets what it prints; it must exist.
        environment: all of it.
        threads: CPU threads, unless the run sets its own.
    """
    start_server()
    process = ForkServerProcess(target=_run, args=(list(words), str(screen), environment, threads))
    process.start()
    return process


def _run(words: list[str], screen: str, environment: dict[str, str], threads: int) -> None:
    # the terminal's Ctrl-C comes to the sweep alone, which forwards it once
    os.setpgid(0, 0)
    end_with_parent()
    file = os.open(screen, os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(file, standard)
    os.close(file)
    faulthandler.enable()
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(threads)
    sys.argv = ["lcbench", *words]
    try:
        with preemptible():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            # by name, as a shell would: the command imports this package, not the other way round
            sys.exit(import_module("lcbench.cli").main(words, requeues=False))
    finally:
        # multiprocessing leaves them out; a logger's service ends in one
        atexit._run_exitfuncs()
