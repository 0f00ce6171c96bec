"""Measures compositions at one length after another, and stops each before it takes too much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from lcbench.attention.base import Attention
from lcbench.cost.apart import BrokenOffError, OutOfMemoryError, apart
from lcbench.cost.board import Board
from lcbench.cost.counts import Counts
from lcbench.cost.measure import READING, Peak, peak, times
from lcbench.cost.memory import available_memory_bytes
from lcbench.cost.plan import Subject
from lcbench.cost.points import Point, Store
from lcbench.cost.step import PASSES, Pass
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model
from lcbench.results.sizes import human_bytes, human_seconds

#: tokens that a first, longer length is predicted from
PILOT = 1024
#: the share of what is available that a point may take
SHARE = 0.9
#: measured over predicted bytes as long as nothing was measured
FACTOR = 1.5
#: a point's process, in times of the step it was predicted to take
OVERDUE = 10


@dataclass
class Series:
    """One pass of one composition against length.

    Args:
        subject: the composition.
        name: the pass.
        counts: by shapes.
        points: by length, as far as they are finished.
        end: the length that was not measured any more, and why; None while it goes on.
    """

    subject: Subject
    name: Pass
    counts: Counts
    points: dict[int, Point] = field(default_factory=dict)
    end: tuple[int, str] | None = None
    #: single steps by length, the pilot's included
    peaks: dict[int, Peak] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.subject.label}, {TITLES[self.name]}"

    def steepness(self, length: int) -> float | None:
        """What a step at ``length`` takes, in times of the last one; None before any."""
        if not self.peaks:
            return None
        last = max(self.peaks)
        there, then = self.counts.at(last), self.counts.at(length)
        if there is None or then is None:
            # the worst that a mechanism can be
            return (length / last) ** 2
        return max(length / last, then.operations / there.operations)

    def expected_seconds(self, length: int) -> float | None:
        """Of one step."""
        steepness = self.steepness(length)
        return None if steepness is None else self.peaks[max(self.peaks)].seconds * steepness

    def expected_bytes(self, length: int) -> float | None:
        """Of one step: what its shapes say, in the proportion that was measured; without shapes, what follows from
        the last length."""
        last = max(self.peaks, default=None)
        measured = None if last is None else self.peaks[last].bytes
        then = self.counts.at(length)
        if then is not None:
            before = None if last is None else self.counts.at(last)
            factor = FACTOR if measured is None or before is None else measured / before.peak_bytes
            # buffers that do not grow weigh more at short lengths: the proportion falls towards 1
            return then.peak_bytes * max(1.0, factor if last is None or length < 4 * last else min(factor, FACTOR))
        steepness = self.steepness(length)
        return None if measured is None or steepness is None else measured * steepness


TITLES: dict[str, str] = {"forward": "forward", "training": "forward and backward"}


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        rounds: readings of each time.
        clock: wall, or cpu for the processor time of the process.
        limit: seconds of one step; what is predicted to take longer is not measured.
    """

    rounds: int
    clock: str
    limit: float


class Growth:
    """Measures series of points.

    Args:
        subjects: the compositions.
        settings: how.
        store: where points are kept.
        board: where progress is shown.
    """

    def __init__(self, subjects: Sequence[Subject], settings: Settings, store: Store, board: Board) -> None:
        self.settings, self.store, self.board = settings, store, board
        self.series = [Series(subject, name, Counts(subject.work, name)) for subject in subjects for name in PASSES]
        self._modules: dict[str, Any] = {}
        self._done = 0.0

    def run(self, lengths: Sequence[int]) -> None:
        """Measure at ``lengths``, ascending. Whatever ends it, the points that are finished stay in ``series``."""
        for number, length in enumerate(lengths):
            self._ahead = lengths[number:]
            entering = [series for series in self.series if series.end is None]
            if not entering:
                return
            found = {id(series): self.store.get(series.subject.work, series.name, length) for series in entering}
            if all(point is not None and point.seconds for point in found.values()):
                for series in entering:
                    self._take(series, found[id(series)])
                continue
            for series in entering:
                self._measure_peak(series, length, found[id(series)])
            self._measure_seconds([series for series in entering if series.end is None], length)

    def _take(self, series: Series, point: Point | None) -> None:
        assert point is not None
        series.peaks[point.length] = Peak(point.peak_bytes, point.step_seconds)
        series.points[point.length] = point

    def _measure_peak(self, series: Series, length: int, known: Point | None) -> None:
        if known is not None:
            series.peaks[length] = Peak(known.peak_bytes, known.step_seconds)
            return
        work = series.subject.work
        try:
            if not series.peaks and length > PILOT:
                self._show(series, PILOT)
                series.peaks[PILOT] = apart(peak, work, PILOT, series.name)
            reason = self._too_much(series, length)
            if reason:
                self._end(series, length, reason)
                return
            self._show(series, length)
            expected = series.expected_seconds(length) or self.settings.limit
            found = apart(peak, work, length, series.name, seconds=60 + OVERDUE * expected)
        except OutOfMemoryError as error:
            self._end(series, length, f"it ran out of memory ({error})")
        except (ConfigurationError, BrokenOffError) as error:
            self._end(series, length, str(error))
        else:
            series.peaks[length] = found
            self._done += found.seconds
            self.store.put([self._point(series, length, found)])

    def _too_much(self, series: Series, length: int) -> str:
        """Why a point is not worth trying; empty if it is."""
        available = available_memory_bytes(torch.device(series.subject.work.device))
        wanted = series.expected_bytes(length)
        if available is not None and wanted is not None and wanted > SHARE * available:
            return f"it would take about {human_bytes(wanted)} of memory, and {human_bytes(available)} are left"
        expected = series.expected_seconds(length)
        if expected is not None and expected > self.settings.limit:
            return (
                f"one step would take about {human_seconds(expected)}, longer than --seconds {self.settings.limit:g}"
            )
        return ""

    def _end(self, series: Series, length: int, reason: str) -> None:
        series.end = length, reason
        self.board.say(f"{series.title}: stopped before {length:,} tokens: {reason}")

    def _point(self, series: Series, length: int, found: Peak) -> Point:
        counted = series.counts.at(length)
        return Point(
            label=series.subject.label,
            identity=series.subject.work.identity,
            pass_=series.name,
            length=length,
            step_seconds=found.seconds,
            peak_bytes=found.bytes,
            operations=None if counted is None else counted.operations,
            predicted_bytes=None if counted is None else counted.peak_bytes,
            exact=counted is not None and counted.exact,
            state_bytes=self.state_bytes(series.subject, length),
        )

    def state_bytes(self, subject: Subject, length: int) -> int | None:
        """What is carried on after ``length`` tokens, by formula; None for a mechanism that carries nothing on because
        it reads both ways."""
        work = subject.work
        if work.identity not in self._modules:
            with torch.device("meta"):
                self._modules[work.identity] = work.make()
        module = self._modules[work.identity]
        assert isinstance(module, Attention | Model)
        try:
            return module.state_bytes(1, length, work.dtype)
        except ConfigurationError:
            return None

    def _measure_seconds(self, entering: Sequence[Series], length: int) -> None:
        """All of them in one process, one after the other in each round."""
        if not entering:
            return
        self.board.show(f"{length:,} tokens: {self.settings.rounds} rounds of all", self._done, self._left())
        works = [(series.subject.work, series.name) for series in entering]
        try:
            found = apart(times, works, length, self.settings.rounds, self.settings.clock)
        except (OutOfMemoryError, ConfigurationError, BrokenOffError) as error:
            for series in entering:
                self._end(series, length, f"while times were taken: {error}")
            return
        points = []
        for series, taken in zip(entering, found, strict=True):
            point = self.store.get(series.subject.work, series.name, length)
            assert point is not None
            point.seconds, point.processor_share = taken.seconds, taken.processor_share
            self._done += sum(taken.seconds)
            points.append(point)
            series.points[length] = point
        self.store.put(points)

    def _show(self, series: Series, length: int) -> None:
        self.board.show(f"{series.title}, {length:,} tokens", self._done, self._left())

    def _left(self) -> float | None:
        """Seconds that the rest will take, by the steps so far; None before any."""
        total, known = 0.0, False
        for series in self.series:
            for length in self._ahead:
                expected = None if series.end is not None or length in series.points else _rough(series, length)
                if expected is not None and expected <= self.settings.limit:
                    known = True
                    rounds = (self.settings.rounds + 1) * max(expected, READING)
                    total += rounds + (0.0 if length in series.peaks else expected + 0.2)
        return total if known else None


def _rough(series: Series, length: int) -> float | None:
    """Seconds of one step, without counting anything for it."""
    if not series.peaks:
        return None
    last = max(series.peaks)
    if len(series.peaks) < 2:
        return series.peaks[last].seconds * (length / last) ** 1.5
    before = sorted(series.peaks)[-2]
    ratio = series.peaks[last].seconds / series.peaks[before].seconds
    growth = median([1.0, 2.0, math.log(ratio) / math.log(last / before)])
    return series.peaks[last].seconds * (length / last) ** growth
