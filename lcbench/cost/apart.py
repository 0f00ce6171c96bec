"""Work in processes of their own: what dies there, or is killed for memory, costs itself only.

The processes are forked from one that has imported torch and done nothing with it, so each begins at once and with
the same memory.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from lcbench.engine.faults import out_of_memory
from lcbench.engine.interrupt import end_with_parent
from lcbench.errors import ConfigurationError

Result = TypeVar("Result")

#: what the process that is forked from has imported; the latter are imported late by what the first need
PRELOADED = [
    "lcbench.cost.preloaded",
    "lcbench.cost.measure",
    "lcbench.model.decoder",
    "lcbench.attention.full",
    "pydantic.main",
    "numpy.random",
]


class OutOfMemoryError(Exception):
    """The work took more memory than there was."""


class BrokenOffError(Exception):
    """The work did not come to its end; the message is a sentence."""


def apart(function: Callable[..., Result], *arguments: Any, seconds: float | None = None) -> Result:
    """Call ``function`` of some module of lcbench with ``arguments`` in a fresh process.

    Args:
        function: what is called.
        arguments: plain values.
        seconds: after which the process is killed; None for never.

    Raises:
        ConfigurationError: as ``function`` raised it.
        OutOfMemoryError: if memory ran out, or the system killed the process.
        BrokenOffError: for any other failure.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise BrokenOffError(f"took more than {seconds:,.0f} s and was broken off")
        kind, value = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:
            raise OutOfMemoryError("killed by the system, usually for its memory") from None
        raise BrokenOffError(f"the process ended with code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if kind == "done":
        return value
    raise {"refused": ConfigurationError, "memory": OutOfMemoryError}.get(kind, BrokenOffError)(value)


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _yield_to_parent()
    try:
        answer = ("done", function(*arguments))
    except ConfigurationError as error:
        answer = ("refused", str(error))
    except Exception as error:
        if out_of_memory(error):
            answer = ("memory", "no more memory was to be had")
        else:
            where = traceback.extract_tb(error.__traceback__)[-1]
            words = " ".join(str(error).split())[:200]
            answer = ("failed", f"{type(error).__name__}: {words} ({Path(where.filename).name}:{where.lineno})")
    sender.send(answer)


def _yield_to_parent() -> None:
    """Ctrl-C is the parent's to handle; where memory runs out, this process is the one to go; and it never outlives
    the one it works for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
