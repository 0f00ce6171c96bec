"""What measured points say of growth: exponents with intervals, crossings, and counts at lengths nobody can run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lcbench.results.statistics import student_quantile


@dataclass(frozen=True)
class PowerLaw:
    """``cost = factor * length ** exponent``, fitted by least squares of the logarithms.

    Args:
        exponent: the slope.
        low: of its 95 % interval (Student); nan with two points, which leave nothing to tell a spread from.
        high: of the same.
        factor: cost at one token, by the fit.
        lengths: how many were fitted.
        shortest: of them.
        longest: of them.
        spread: standard deviation of the logarithms about the line; nan with two points.
        scatter: mean and sum of squared deviations of the logarithms of the lengths.
    """

    exponent: float
    low: float
    high: float
    factor: float
    lengths: int
    shortest: int
    longest: int
    spread: float
    scatter: tuple[float, float]

    def at(self, length: int) -> tuple[float, float, float]:
        """The predicted cost of ``length`` tokens and the 95 % interval of one measurement of it, if the law holds."""
        mean, squares = self.scatter
        middle = math.log(self.factor) + self.exponent * math.log(length)
        if self.lengths < 3:
            return math.exp(middle), math.nan, math.nan
        deviation = self.spread * math.sqrt(1 + 1 / self.lengths + (math.log(length) - mean) ** 2 / squares)
        half = student_quantile(self.lengths - 2) * deviation
        return tuple(math.exp(min(middle + way * half, 700.0)) for way in (0, -1, 1))  # type: ignore[return-value]


def power_law(costs: Mapping[int, float]) -> PowerLaw | None:
    """The law through costs by length; None for fewer than two of them."""
    points = [(math.log(length), math.log(cost)) for length, cost in costs.items() if cost > 0]
    if len(points) < 2:
        return None
    n = len(points)
    mean_x, mean_y = (sum(values) / n for values in zip(*points, strict=True))
    squares = sum((x - mean_x) ** 2 for x, _ in points)
    exponent = sum((x - mean_x) * (y - mean_y) for x, y in points) / squares
    residual = sum((y - mean_y - exponent * (x - mean_x)) ** 2 for x, y in points)
    spread = math.sqrt(residual / (n - 2)) if n > 2 else math.nan
    half = student_quantile(n - 2) * spread / math.sqrt(squares) if n > 2 else math.nan
    return PowerLaw(
        exponent=exponent,
        low=exponent - half,
        high=exponent + half,
        factor=math.exp(mean_y - exponent * mean_x),
        lengths=n,
        shortest=min(costs),
        longest=max(costs),
        spread=spread,
        scatter=(mean_x, squares),
    )


#: a crossing further out than so many times the longest length is no statement
FURTHEST = 1000


@dataclass(frozen=True)
class Crossing:
    """From which length on a mechanism costs less than full attention.

    Args:
        how: ``measured``: interpolated between two measured lengths; ``extrapolated``: from the last length both were
            measured at, by the exponent of their ratio; ``always``: less at all of them; ``never``: it costs more at
            the last one and grows no slower, or so little slower that they would meet beyond ``FURTHEST`` times the
            longest length; ``unclear``: the interval of the ratio's exponent holds 0, or fewer than three lengths
            give none; ``unknown``: they have no length in common.
        length: tokens, where there is a crossing.
        cost: what both cost there.
    """

    how: Literal["measured", "extrapolated", "always", "never", "unclear", "unknown"]
    length: float | None = None
    cost: float | None = None


def crossing(costs: Mapping[int, float], full: Mapping[int, float]) -> Crossing:
    """Where ``costs`` fall below those of full attention for good, both by length.

    Between points costs are taken to follow a power law. If they cross more than once, the last time counts.
    """
    lengths = sorted(length for length in costs.keys() & full.keys() if costs[length] > 0 and full[length] > 0)
    if not lengths:
        return Crossing("unknown")
    excess = {length: math.log(costs[length] / full[length]) for length in lengths}
    last = lengths[-1]
    if excess[last] < 0:
        for below, above in reversed(list(pairwise(lengths))):
            if excess[below] >= 0:
                share = excess[below] / (excess[below] - excess[above])
                return Crossing("measured", _between(below, above, share), _between(full[below], full[above], share))
        return Crossing("always")
    ratio = power_law({length: costs[length] / full[length] for length in lengths})
    growth = power_law({length: full[length] for length in lengths})
    if ratio is None or growth is None:
        return Crossing("unknown")
    if ratio.lengths < 3 or ratio.low < 0 <= ratio.high:
        return Crossing("unclear")
    if ratio.exponent >= 0 or excess[last] / -ratio.exponent > math.log(FURTHEST):
        return Crossing("never")
    further = excess[last] / -ratio.exponent
    return Crossing("extrapolated", last * math.exp(further), full[last] * math.exp(further * growth.exponent))


def _between(low: float, high: float, share: float) -> float:
    return math.exp((1 - share) * math.log(low) + share * math.log(high))


@dataclass(frozen=True)
class Polynomial:
    """A count of operations or bytes as a polynomial of the length: constant, linear and quadratic coefficient.

    Args:
        coefficients: from the constant on.
        exact: whether four counts lie on it without any rest.
    """

    coefficients: tuple[float, float, float]
    exact: bool

    def at(self, length: int) -> float:
        """The count at ``length`` tokens."""
        constant, linear, quadratic = self.coefficients
        return constant + linear * length + quadratic * length * length


def polynomial(count: Callable[[int], int], step: int) -> Polynomial:
    """The polynomial that a mechanism's counts follow beyond ``2 * step`` tokens.

    With its options fixed, what a mechanism computes is at most quadratic in the length once windows and memories are
    full, up to what the last, unfinished segment adds. Lengths that are multiples of all of its segments, windows and
    rates leave no such rest. Where there is one all the same, it must not be taken for a quadratic term, which a
    billion tokens would multiply beyond all measure: two estimates of that term have to agree within a tenth.

    Args:
        count: counts at a length.
        step: a multiple of what the mechanism cuts sequences by, and at least half of all it holds.
    """
    first, *_ = counts = [count(step * times) for times in (2, 3, 4, 5)]
    early, late = (counts[i + 2] - 2 * counts[i + 1] + counts[i] for i in (0, 1))
    quadratic = late / 2 / step**2 if late > 0 and abs(late - early) <= 0.1 * late else 0.0
    linear = (counts[-1] - first) / (3 * step) - quadratic * 7 * step
    constant = first - linear * 2 * step - quadratic * (2 * step) ** 2
    return Polynomial((constant, linear, quadratic), exact=early == late)
