from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest

from lcbench.task.draws import distinct, subset, symbols
from tests.oracles.statistics import chi_square


@pytest.mark.parametrize(("total", "count"), [(6, 3), (5, 4), (9, 2), (8, 1), (4, 4)])
def test_subsets_are_equally_likely(total: int, count: int) -> None:
    chosen = subset(np.random.default_rng(0), 40_000, total, count)
    seen = Counter(tuple(np.flatnonzero(row)) for row in chosen)
    possible = list(combinations(range(total), count))
    assert set(seen) == set(possible)
    if len(possible) > 1:
        assert abs(chi_square([seen[each] for each in possible], [1.0] * len(possible))) < 4


@pytest.mark.parametrize(("total", "count"), [(512, 256), (5000, 4000), (5000, 16)])
def test_large_subsets_have_their_size_and_no_preferred_place(total: int, count: int) -> None:
    chosen = subset(np.random.default_rng(1), 1000, total, count)
    assert (chosen.sum(1) == count).all()
    # Places of one row exclude each other, which scales the statistic by the share left out.
    frequencies = chosen.sum(0)
    statistic = ((frequencies - 1000 * count / total) ** 2).sum() / (1000 * count / total * (1 - count / total))
    assert abs(statistic - (total - 1)) < 4 * (2 * (total - 1)) ** 0.5


@pytest.mark.parametrize(("count", "choices"), [(3, 4), (3, 5), (2, 9), (1, 4), (4, 4), (1, 1)])
def test_distinct_numbers_in_any_order_are_equally_likely(count: int, choices: int) -> None:
    drawn = distinct(np.random.default_rng(2), 40_000, count, choices)
    seen = Counter(tuple(row) for row in drawn.tolist())
    possible = list(permutations(range(choices), count))
    assert set(seen) == set(possible)
    if len(possible) > 1:
        assert abs(chi_square([seen[each] for each in possible], [1.0] * len(possible))) < 4


@pytest.mark.parametrize(("count", "choices"), [(64, 4095), (31, 127), (1000, 2**23)])
def test_many_distinct_numbers(count: int, choices: int) -> None:
    drawn = distinct(np.random.default_rng(3), 500, count, choices)
    assert drawn.min() >= 0
    assert drawn.max() < choices
    assert all(len(set(row)) == count for row in drawn.tolist())


@pytest.mark.parametrize("choices", [2, 7, 8, 16, 256, 300])
def test_symbols_are_equally_likely(choices: int) -> None:
    drawn = symbols(np.random.default_rng(4), (300, 100), choices)
    assert abs(chi_square(np.bincount(drawn.reshape(-1), minlength=choices).tolist(), [1.0] * choices)) < 4
