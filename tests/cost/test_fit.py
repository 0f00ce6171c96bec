"""Exponents, crossings and continued counts, against growth that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lcbench.cost.fit import crossing, polynomial, power_law

LENGTHS = (1_000, 2_000, 4_000, 8_000, 16_000)


def test_a_power_law_is_found_again() -> None:
    law = power_law({n: 3e-6 * n**1.5 for n in LENGTHS})
    assert law is not None
    assert law.exponent == pytest.approx(1.5)
    assert law.low == pytest.approx(1.5)
    assert law.at(10**9)[0] == pytest.approx(3e-6 * 1e9**1.5, rel=1e-6)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = predicted = 0
    for _ in range(2000):
        noise = np.exp(rng.normal(0, 0.1, len(LENGTHS) + 1))
        costs = {n: n**1.2 * e for n, e in zip(LENGTHS, noise, strict=False)}
        law = power_law(costs)
        assert law is not None
        held += law.low <= 1.2 <= law.high
        _, low, high = law.at(10**6)
        predicted += low <= (10**6) ** 1.2 * noise[-1] <= high
    assert held / 2000 == pytest.approx(0.95, abs=0.02)
    assert predicted / 2000 == pytest.approx(0.95, abs=0.02)


def test_two_points_have_an_exponent_and_no_interval() -> None:
    law = power_law({10: 1.0, 1000: 100.0})
    assert law is not None
    assert law.exponent == pytest.approx(1.0)
    assert math.isnan(law.low)
    assert math.isnan(law.at(10**6)[1])
    assert power_law({10: 1.0}) is None


def test_a_crossing_between_points_is_interpolated() -> None:
    found = crossing({n: 3_000.0 * n for n in LENGTHS}, {n: float(n * n) for n in LENGTHS})
    assert found.how == "measured"
    assert found.length == pytest.approx(3_000)
    assert found.cost == pytest.approx(9e6)


def test_the_last_of_several_crossings_counts() -> None:
    found = crossing({1: 0.5, 10: 2.0, 100: 2.0, 1000: 0.5}, {1: 1.0, 10: 1.0, 100: 1.0, 1000: 1.0})
    assert found.how == "measured"
    assert found.length == pytest.approx(math.sqrt(100 * 1000))


def test_a_crossing_beyond_the_points_is_extrapolated_and_said_to_be() -> None:
    found = crossing({n: 1e6 * n for n in LENGTHS}, {n: float(n * n) for n in LENGTHS})
    assert found.how == "extrapolated"
    assert found.length == pytest.approx(1e6)
    assert found.cost == pytest.approx(1e12)


def test_what_grows_faster_and_costs_more_never_crosses() -> None:
    assert crossing({n: n**2.1 for n in LENGTHS}, {n: n**2.0 for n in LENGTHS}).how == "never"
    assert crossing({n: n**1.999 * 2 for n in LENGTHS}, {n: n**2.0 for n in LENGTHS}).how == "never"
    assert crossing({n: 0.5 * n for n in LENGTHS}, {n: 1.0 * n for n in LENGTHS}).how == "always"
    assert crossing({1: 1.0}, {2: 1.0}).how == "unknown"


def test_noise_is_no_crossing() -> None:
    noise = (1.1, 0.9, 1.1, 0.9, 1.0)
    assert (
        crossing({n: 2.0 * n * e for n, e in zip(LENGTHS, noise, strict=True)}, {n: n for n in LENGTHS}).how
        == "unclear"
    )


def test_two_points_tell_no_crossing_beyond_them() -> None:
    assert crossing({n: 1e6 * n for n in LENGTHS[:2]}, {n: float(n * n) for n in LENGTHS[:2]}).how == "unclear"


def test_lengths_that_full_attention_did_not_reach_do_not_count() -> None:
    found = crossing({n: 3_000.0 * n for n in (*LENGTHS, 10**6)}, {n: float(n * n) for n in LENGTHS})
    assert found.length == pytest.approx(3_000)


@pytest.mark.parametrize("quadratic", [0, 2])
def test_a_polynomial_is_continued_without_a_rest(quadratic: int) -> None:
    found = polynomial(lambda n: 7 + 3 * n + quadratic * n * n, 64)
    assert found.exact
    assert found.at(10**9) == pytest.approx(7 + 3e9 + quadratic * 1e18, rel=1e-12)


def test_the_rest_of_an_unfinished_segment_is_no_quadratic_term() -> None:
    found = polynomial(lambda n: 1000 * n + 300 * (n % 7), 1024)
    assert not found.exact
    assert found.at(10**9) == pytest.approx(1e12, rel=0.01)
