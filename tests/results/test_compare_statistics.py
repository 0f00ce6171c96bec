"""Student's t against published tables, against its definition, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lcbench.results.statistics import incomplete_beta, student, student_quantile


@pytest.mark.parametrize(
    ("freedom", "one_sided_975", "one_sided_95"),
    # Fisher and Yates, Statistical Tables, table III
    [
        (1, 12.706, 6.314),
        (2, 4.303, 2.920),
        (3, 3.182, 2.353),
        (4, 2.776, 2.132),
        (5, 2.571, 2.015),
        (9, 2.262, 1.833),
        (10, 2.228, 1.812),
        (20, 2.086, 1.725),
        (30, 2.042, 1.697),
        (120, 1.980, 1.658),
    ],
)
def test_quantiles_are_the_published_ones(freedom, one_sided_975, one_sided_95):
    assert student_quantile(freedom) == pytest.approx(one_sided_975, abs=5e-4)
    assert student_quantile(freedom, 0.05) == pytest.approx(one_sided_95, abs=5e-4)


def test_quantiles_of_one_and_two_degrees_have_closed_forms():
    for tail in (0.25, 0.025, 0.001):
        assert student_quantile(1, tail) == pytest.approx(math.tan(math.pi * (0.5 - tail)), rel=1e-9)
        alpha = 4 * tail * (1 - tail)
        assert student_quantile(2, tail) == pytest.approx((1 - 2 * tail) * math.sqrt(2 / alpha), rel=1e-9)


def test_many_degrees_are_normal():
    assert student_quantile(10**6) == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (1.0, 0.5), (2.0, 3.0), (15.0, 0.5), (60.0, 4.5)])
def test_the_incomplete_beta_function_is_its_integral(a, b):
    # substitute x = sin^2: the integrand has no poles left
    for x in (0.01, 0.3, 0.5, 0.9, 0.999):
        angles = np.linspace(0, math.asin(math.sqrt(x)), 200_001)
        middle = (angles[1:] + angles[:-1]) / 2
        integral = np.sum(2 * np.sin(middle) ** (2 * a - 1) * np.cos(middle) ** (2 * b - 1)) * (angles[1] - angles[0])
        whole = math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
        assert incomplete_beta(a, b, x) == pytest.approx(integral / whole, rel=1e-6)


def test_a_published_interval():
    # the additional hours of sleep of Student 1908, whose interval R prints as 0.7001142 2.4598858 (`sleep`)
    hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    low, high = student(hours)
    assert (low + high) / 2 == pytest.approx(1.58)
    assert (low, high) == pytest.approx((0.7001, 2.4599), abs=1e-4)


def test_one_value_has_no_interval():
    assert all(math.isnan(end) for end in student([0.3]))


def test_it_covers_95_percent_even_of_three():
    draws = np.random.default_rng(0).normal(5, 2, (4000, 3)).tolist()
    intervals = [student(draw) for draw in draws]
    assert np.mean([low <= 5 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.012)
