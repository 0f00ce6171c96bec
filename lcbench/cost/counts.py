"""Operations and bytes of a pass at any length: counted from shapes where that is quick, else by what the counts at
shorter lengths follow."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lcbench.attention.base import Attention
from lcbench.cost.analytic import Count, count
from lcbench.cost.fit import Polynomial, polynomial
from lcbench.cost.step import BLOCK, Pass, Work, counted
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model

#: seconds of the processor that counting one length may take
PATIENCE = 4.0
#: seconds that the counts for all further lengths may take
FURTHER = 60.0
#: tokens; counts are taken at 2 to 5 times so many, or more where the mechanism holds more
STEP = 1024


@dataclass(frozen=True)
class Counted:
    """What a pass takes by its shapes.

    Args:
        operations: multiplications and additions.
        peak_bytes: the most held at once.
        exact: False where they follow from counts at other lengths, which have a rest.
    """

    operations: float
    peak_bytes: float
    exact: bool


class Counts:
    """The counts of one pass, each length once.

    Args:
        work: what is computed.
        name: which pass.
    """

    def __init__(self, work: Work, name: Pass) -> None:
        self.work, self.name = work, name
        #: why there are no counts, or none beyond those made; empty if there are
        self.reason = ""
        self._made: dict[int, Count] = {}
        self._seconds: tuple[int, float] | None = None
        self._law: tuple[Polynomial, Polynomial] | None = None

    def at(self, length: int) -> Counted | None:
        """The count at ``length`` tokens; None, and ``reason``, where there is none."""
        try:
            if self._quick(length):
                made = self._count(length)
                return Counted(made.operations, made.peak_bytes, True)
            law = self._polynomials()
        except ConfigurationError as error:
            self.reason = str(error)
            return None
        except Exception as error:
            # a mechanism may fail on tensors without values and work on others
            self.reason = f"{type(error).__name__} without values: {' '.join(str(error).split())[:200]}"
            return None
        if law is None or length < 2 * self._step:
            return None
        operations, held = law
        return Counted(operations.at(length), held.at(length), operations.exact and held.exact)

    def _quick(self, length: int) -> bool:
        """Whether a count is there, or will be soon."""
        if length in self._made:
            return True
        if self.reason:
            return False
        if self._seconds is None:
            self._count(min(length, STEP))
            return self._quick(length)
        counted_length, taken = self._seconds
        return length <= counted_length or taken * (length / counted_length) <= PATIENCE

    def _count(self, length: int) -> Count:
        if length not in self._made:
            began = time.process_time()
            self._made[length] = count(counted(self.work, length, self.name))
            if self._seconds is None or length >= self._seconds[0]:
                self._seconds = length, time.process_time() - began
        return self._made[length]

    def _polynomials(self) -> tuple[Polynomial, Polynomial] | None:
        """Of operations and of bytes."""
        if self._law is None and not self.reason:
            units = _units(self.work)
            held = max([STEP, *units])
            common = math.lcm(*units)
            steps = [common * -(-held // common), max(units, default=1) * -(-held // max(units, default=1))]
            step = next((step for step in steps if self._affords(step)), None)
            if step is None:
                self.reason = f"counts beyond the {held:,} tokens that it may hold would take too long"
                return None
            self._step = step
            self._law = (
                polynomial(lambda length: self._count(length).operations, step),
                polynomial(lambda length: self._count(length).peak_bytes, step),
            )
        return self._law

    def _affords(self, step: int) -> bool:
        if self._seconds is None:
            self._count(STEP)
        assert self._seconds is not None
        length, taken = self._seconds
        # 2, 3, 4 and 5 steps
        return taken * 14 * step / length <= FURTHER


def _units(work: Work) -> list[int]:
    """The numbers of tokens that a mechanism cuts or holds, as far as its options are such numbers."""
    module = work.make()
    layers = [layer for layer in module.modules() if isinstance(layer, Attention)]
    found = set(_numbers(work.attention or {}))
    found |= {layer.segment for layer in layers if layer.segment}
    found |= {getattr(layer, "block", BLOCK) + 1 for layer in layers if layer.needs_landmarks}
    if isinstance(module, Model) and module.segment:
        found.add(module.segment)
    return sorted(found)


def _numbers(node: Any) -> Iterator[int]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _numbers(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _numbers(value)
    elif isinstance(node, int) and not isinstance(node, bool) and node > 1:
        yield node
