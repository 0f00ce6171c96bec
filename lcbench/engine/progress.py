"""What a person sees while a run works: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.status import Status

#: seconds between two lines where there is no terminal
LINE_EVERY = 10.0


class Progress:
    """Progress of training and scoring.

    Args:
        console: where to show it.
        shown: False shows nothing.
    """

    def __init__(self, console: Console, shown: bool) -> None:
        self.console, self.shown = console, shown
        self.bar: Bar | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self.shown and self.console.is_terminal:
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, description: str, total: int, done: int = 0) -> None:
        """Start a stretch of work of ``total`` parts, or of nobody knows how many: 0."""
        self.description, self.total, self.done, self.began = description, total, done, time.monotonic()
        self._first = done
        if self.bar is not None:
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            self.bar.add_task(description, total=total or None, completed=done, facts="")

    def step(self, step: int, loss: float, headline: str, tokens_per_second: float) -> None:
        """Training got to ``step``; ``headline`` is what the last light evaluation said, or nothing."""
        facts = (f"loss {loss:.4f}", headline, f"{tokens_per_second:,.0f} tokens/s")
        self._show(step, "  ".join(word for word in facts if word))

    def tick(self, more: int) -> None:
        """``more`` parts are done."""
        self._show(self.done + more, "")

    def _show(self, done: int, facts: str) -> None:
        self.done = done
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, facts=facts)
        elif self.shown and time.monotonic() - self._last_line > LINE_EVERY:
            self._last_line = time.monotonic()
            rate = (done - self._first) / (self._last_line - self.began)
            left = f"{(self.total - done) / rate:.0f} s left" if rate and self.total else ""
            reached = f"{done}/{self.total}" if self.total else f"{done:,}"
            words = "  ".join(word for word in (reached, facts, left) if word)
            self.console.print(f"{self.description} {words}")


class Composing:
    """What a person sees of work that turns up before a run begins: a line that says what, then how far it is.

    Args:
        console: where to show it.
        status: the line that stands on a terminal meanwhile.
    """

    def __init__(self, console: Console, status: Status) -> None:
        self.console, self.status = console, status

    def begin(self, description: str, total: int) -> None:
        """Start a stretch of work of ``total`` parts, or of nobody knows how many: 0."""
        self.description, self.total, self.done, self._shown = description, total, 0, time.monotonic()
        self.console.print(f"{description} (once; kept for the next time)", soft_wrap=True)

    def tick(self, more: int) -> None:
        """``more`` parts are done."""
        self.done += more
        if time.monotonic() - self._shown > 0.5:
            self._shown = time.monotonic()
            reached = f"{self.done / self.total:.0%}" if self.total else f"{self.done:,}"
            self.status.update(f"{self.description} {reached}")


@contextmanager
def composing(console: Console) -> Iterator[Composing]:
    """A line on a terminal while a run is composed."""
    with console.status("composing") as status:
        yield Composing(console, status)
