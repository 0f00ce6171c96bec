"""Intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist, fmean, stdev, variance
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: two-sided 95 %
Z = NormalDist().inv_cdf(0.975)


def wilson(events: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion from ``events`` in ``n`` (Wilson 1927).

    Right also at 0 and at n events, where the usual +- is empty. It takes outcomes as independent; where several
    come from one sequence the true interval is wider.
    """
    if n == 0:
        return math.nan, math.nan
    share = events / n
    middle = share + Z * Z / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    low, high = (middle - half) / scale, (middle + half) / scale
    return (0.0 if events == 0 else max(0.0, low)), (1.0 if events == n else min(1.0, high))


def normal(total: float, squares: float, n: int) -> tuple[float, float]:
    """95 % interval of a mean from the sum and the sum of squares of ``n`` outcomes (central limit)."""
    if n < 2:
        return math.nan, math.nan
    mean = total / n
    variance = max(0.0, squares - n * mean * mean) / (n - 1)
    half = Z * math.sqrt(variance / n)
    return mean - half, mean + half


def ratio(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> tuple[float, float, float]:
    """A ratio of two sums over independent groups, ``[groups]`` each, and its 95 % interval.

    What is within a group may depend on each other as it likes. The variance is that of the linearised ratio (Cochran,
    "Sampling Techniques", 1977, section 6.4), with Student's t for few groups; unknown for one.
    """
    total, k = float(denominators.sum()), len(numerators)
    value = float(numerators.sum()) / total
    if k < 2:
        return value, math.nan, math.nan
    residuals = numerators - value * denominators
    half = student_quantile(k - 1) * math.sqrt(k / (k - 1) * float(residuals @ residuals)) / total
    return value, value - half, value + half


def student(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of independent, normally spread ``values`` (Student 1908)."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = fmean(values)
    half = student_quantile(n - 1) * stdev(values, mean) / math.sqrt(n)
    return mean - half, mean + half


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of ``a`` minus that of ``b``, of independent, normally spread values (Welch 1947).

    The variances may differ; the degrees of freedom are Satterthwaite's.
    """
    if len(a) < 2 or len(b) < 2:
        return math.nan, math.nan
    first, second = variance(a) / len(a), variance(b) / len(b)
    difference, total = fmean(a) - fmean(b), first + second
    if total == 0:
        return difference, difference
    freedom = total**2 / (first**2 / (len(a) - 1) + second**2 / (len(b) - 1))
    half = student_quantile(freedom) * math.sqrt(total)
    return difference - half, difference + half


def without_spread(values: Sequence[float]) -> bool:
    """Whether all values are the same, but for rounding: nothing to estimate a spread from."""
    return max(values) - min(values) <= 1e-12 * max(1.0, abs(values[0]))


@cache
def student_quantile(freedom: float, tail: float = 0.025) -> float:
    """The t that Student's t with ``freedom`` degrees of freedom exceeds with probability ``tail`` < 1/2.

    P(|t| > x) is the regularised incomplete beta function I_y(freedom / 2, 1 / 2) at y = freedom / (freedom + x^2),
    which grows with y: halve the interval of y until the floating-point numbers end.
    """
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if incomplete_beta(freedom / 2, 0.5, middle) < 2 * tail:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom * (1 - high) / high)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        # where the fraction converges slowly, that of the other tail converges fast
        return 1 - incomplete_beta(b, a, 1 - x)
    factor = math.exp(
        a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - math.log(a)
    )
    # Lentz's method: the fraction as a running product of ratios of consecutive numerators and denominators
    numerators, denominators = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = denominators
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for coefficient in (even, odd):
            denominators = 1 / (1 + coefficient * denominators)
            numerators = 1 + coefficient / numerators
            fraction *= numerators * denominators
        if abs(numerators * denominators - 1) < 1e-15:
            break
    return factor * fraction
