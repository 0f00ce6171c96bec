"""Sampling draws from the distribution that its definition gives."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.errors import ConfigurationError
from lcbench.inside.sampling import Sampler, nucleus
from tests.oracles.statistics import chi_square


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=9), top_p=st.integers(1, 100))
@settings(max_examples=200, deadline=None)
def test_the_nucleus_is_the_smallest_set_that_reaches_p(weights: list[int], top_p: int) -> None:
    total = sum(weights)
    p = nucleus(torch.tensor(weights, dtype=torch.float64).log(), 1.0, top_p / 100)
    kept = [i for i, share in enumerate(p.tolist()) if share > 0]
    reached = sum(Fraction(weights[i], total) for i in kept)
    wanted = Fraction(top_p, 100)
    # within rounding, it reaches p, and without its last member it does not
    assert reached >= wanted - Fraction(1, 10**12)
    least = min(kept, key=lambda i: weights[i])
    assert len(kept) == 1 or reached - Fraction(weights[least], total) < wanted + Fraction(1, 10**12)
    assert all(weights[i] <= weights[least] for i in range(len(weights)) if i not in kept)
    for i in kept:
        assert p[i].item() == pytest.approx(float(Fraction(weights[i], total) / reached))


def test_draws_have_the_exact_distribution() -> None:
    scores = torch.tensor([0.3, 2.0, 1.1, -1.0, 1.9, -torch.inf])
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.8), (2.0, 0.5)):
        expected = nucleus(scores, temperature, top_p)
        sampler = Sampler(temperature, top_p, seed=3)
        counts = torch.bincount(torch.tensor([sampler.draw(scores) for _ in range(4000)]), minlength=6)
        assert not counts[expected == 0].any()
        there = expected > 0
        assert abs(chi_square(counts[there].tolist(), expected[there].tolist())) < 4
    softmax = (scores.double() / 0.7).softmax(-1)
    torch.testing.assert_close(nucleus(scores, 0.7, 1.0), softmax)


def test_temperature_zero_is_greedy_and_small_ones_do_not_overflow() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0])
    assert Sampler(0.0, 1.0, 0).draw(scores) == 1
    assert nucleus(scores, 1e-300, 0.9).tolist() == [0, 1, 0]
    assert nucleus(torch.full((3,), 1e30), 1.0, 1.0).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((-1.0, 1.0, 0), "--temperature -1"),
        ((float("nan"), 1.0, 0), "--temperature nan"),
        ((1.0, 0.0, 0), "--top-p 0"),
        ((1.0, 1.5, 0), "--top-p 1.5"),
        ((1.0, 1.0, -4), "closest is 4"),
    ],
)
def test_what_cannot_be_is_refused(options: tuple[float, float, int], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Sampler(*options)
