"""How far back a query sees, where that is less than everything.

Positions decide, not places in a buffer: padding, caches and the way a sequence is cut into calls change nothing.
What a query may see lies within a fixed number of tokens, so scoring takes blocks of queries and the few keys around
them, and never makes a matrix of all pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

Positions = TypeVar("Positions", int, Tensor, np.ndarray)


class Reach(ABC):
    """A rule that gives each position the first one (and, reading both ways, the last one) that it sees."""

    #: a visible key lies less than this many tokens from its query, on either side
    places: int

    @abstractmethod
    def since(self, positions: Positions) -> Positions:
        """The first position that a query at ``positions`` (any shape, or a number) sees; may be negative."""

    @abstractmethod
    def until(self, positions: Positions) -> Positions:
        """The last one, where attention is not causal."""


@dataclass(frozen=True)
class Window(Reach):
    """The last ``width`` positions, its own included: ``i - width < j <= i``; both ways ``|i - j| < width``.

    ``floor``: positions before it are in no window.
    """

    width: int
    floor: int | None = None

    @property
    def places(self) -> int:  # type: ignore[override]
        return self.width

    def since(self, positions: Positions) -> Positions:
        first = positions - (self.width - 1)
        if self.floor is None:
            return first
        return max(first, self.floor) if isinstance(first, int) else first.clip(min=self.floor)

    def until(self, positions: Positions) -> Positions:
        return positions + (self.width - 1)


@dataclass(frozen=True)
class DilatedWindow(Reach):
    """A window on tokens whose positions are ``dilation`` apart: ``i - dilation width < j <= i``; both ways
    ``|i - j| < dilation width``."""

    width: int
    dilation: int

    @property
    def places(self) -> int:  # type: ignore[override]
        return self.width

    def since(self, positions: Positions) -> Positions:
        return positions - self.dilation * (self.width - 1)

    def until(self, positions: Positions) -> Positions:
        return positions + self.dilation * (self.width - 1)


@dataclass(frozen=True)
class Segment(Reach):
    """Its own segment of ``length`` positions, and the ``memory`` positions before that segment.

    Segments begin at the positions that ``length`` divides, or ``shift`` before them.
    """

    length: int
    memory: int = 0
    shift: int = 0

    @property
    def places(self) -> int:  # type: ignore[override]
        return self.length + self.memory

    def since(self, positions: Positions) -> Positions:
        return positions - (positions + self.shift) % self.length - self.memory

    def until(self, positions: Positions) -> Positions:
        return positions - (positions + self.shift) % self.length + (self.length - 1)
