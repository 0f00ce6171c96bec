"""How far counts are from what they should be, in standard deviations."""

from __future__ import annotations

from collections.abc import Sequence


def deviation(count: float, n: float, probability: float) -> float:
    """Of ``count`` successes in ``n`` independent trials."""
    return (count - n * probability) / (n * probability * (1 - probability)) ** 0.5


def chi_square(observed: Sequence[float], expected: Sequence[float]) -> float:
    """Of the chi-square statistic of ``observed`` counts from its mean; ``expected`` is scaled to their sum."""
    scale = sum(observed) / sum(expected)
    statistic = sum((o - scale * e) ** 2 / (scale * e) for o, e in zip(observed, expected, strict=True))
    freedom = len(observed) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def difference(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the chi-square statistic that compares two histograms from its mean."""
    ratio = (sum(a) / sum(b)) ** 0.5
    kept = [(x, y) for x, y in zip(a, b, strict=True) if x + y > 0]
    statistic = sum((x / ratio - y * ratio) ** 2 / (x + y) for x, y in kept)
    freedom = len(kept) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5
