"""Time and peak memory of steps, measured in this process; called in one of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lcbench.cost.memory import added_peak_bytes
from lcbench.cost.step import Pass, Step, Work

#: tokens of the step that goes before a measured one: libraries make their own buffers on first use
WARM_UP = 320
#: seconds of one reading at least: shorter steps are repeated
READING = 0.02

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Peak:
    """One step in a fresh process.

    Args:
        bytes: what it added to the process's peak; None where the system does not say.
        seconds: what it took, wall time.
    """

    bytes: int | None
    seconds: float


def peak(work: Work, length: int, name: Pass) -> Peak:
    """The memory that one pass takes."""
    _prepare(work)
    Step(work, min(length, WARM_UP)).run(name)
    step = Step(work, length)
    began = time.perf_counter()
    added = added_peak_bytes(lambda: _run(step, name), torch.device(work.device))
    if added is None:
        _run(step, name)
    return Peak(added, time.perf_counter() - began)


@dataclass(frozen=True)
class Times:
    """What one pass took.

    Args:
        seconds: of each round.
        processor_share: processor time in a share of wall time, over all rounds.
    """

    seconds: list[float]
    processor_share: float


def times(works: Sequence[tuple[Work, Pass]], length: int, rounds: int, clock: str) -> list[Times]:
    """The time of every pass in every round; each round runs all of them once, one after the other.

    Each runs once before, uncounted. A pass that is over within ``READING`` is repeated, and its mean is taken.
    """
    _prepare(works[0][0])
    made: dict[str, Step] = {}
    steps = [(made.setdefault(work.identity, Step(work, length)), name) for work, name in works]
    repeats = []
    for step, name in steps:
        began = time.perf_counter()
        _run(step, name)
        repeats.append(max(1, math.ceil(READING / max(time.perf_counter() - began, 1e-6))))
    readings: list[list[dict[str, float]]] = [[] for _ in steps]
    for _ in range(rounds):
        for (step, name), often, found in zip(steps, repeats, readings, strict=True):
            starts = {kind: now() for kind, now in CLOCKS.items()}
            for _ in range(often):
                step.run(name)
            _wait(step.work.device)
            found.append({kind: (now() - starts[kind]) / often for kind, now in CLOCKS.items()})
    return [
        Times(
            seconds=[reading[clock] for reading in found],
            processor_share=sum(reading["cpu"] for reading in found) / sum(reading["wall"] for reading in found),
        )
        for found in readings
    ]


def _prepare(work: Work) -> None:
    torch.manual_seed(work.seed)
    if work.threads is not None:
        torch.set_num_threads(work.threads)


def _run(step: Step, name: Pass) -> None:
    step.run(name)
    _wait(step.work.device)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
