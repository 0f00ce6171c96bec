"""What a person sees while points are measured: what is running, how much is done, and how long the rest will take."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lcbench.results.sizes import human_seconds

#: seconds between two lines where there is no terminal
LINE_EVERY = 10.0


class Board:
    """Progress on a terminal as a live bar, elsewhere as a line now and then.

    Args:
        console: where to show it.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[left]}"), console=self.console, transient=True)
            self._bar.add_task("", total=1.0, left="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, what: str, done: float, left: float | None) -> None:
        """``what`` begins; seconds of work done so far, and left by what is known so far, None if nothing is."""
        words = "" if left is None else f"about {human_seconds(left)} left"
        if self._bar is not None:
            total = done + left if left is not None else 0.0
            self._bar.update(self._bar.task_ids[0], description=what, completed=done, total=total or None, left=words)
        elif time.monotonic() - self._last_line > LINE_EVERY:
            self._last_line = time.monotonic()
            self.console.print("  ".join(word for word in (what, words) if word), soft_wrap=True)

    def say(self, sentence: str) -> None:
        """A line that stays."""
        self.console.print(sentence, markup=False, soft_wrap=True)
