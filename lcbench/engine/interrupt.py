"""Ctrl-C: the first asks the run to stop between two steps, the second stops at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

from rich.console import Console


class Interrupted(BaseException):
    """The user asked the run to stop. Not a KeyboardInterrupt, which Lightning turns into an exit of its own."""


class StopRequest:
    """Turns SIGINT into a request while it is entered.

    Args:
        console: where the request is confirmed.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.requested = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise Interrupted
        self.requested = True
        self.console.print("stopping after this step; Ctrl-C again stops at once")

    def check(self) -> None:
        """Obey a request.

        Raises:
            Interrupted: if there is one.
        """
        if self.requested:
            raise Interrupted
