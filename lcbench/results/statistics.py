"""Intervals."""

from __future__ import annotations

import math
from statistics import NormalDist

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
