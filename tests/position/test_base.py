"""Sizes of a layer, and from distances to pairs."""

from __future__ import annotations

import pytest
import torch

from lcbench.errors import ConfigurationError
from lcbench.position.base import Alignment, LayerShape, shift, spread


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigurationError, match=r"model.n_heads=5 .* model.d_model=64; .* model.n_heads=4"):
        LayerShape(d_model=64, n_heads=5)


@pytest.mark.parametrize(("q_time", "k_time", "offset"), [(1, 1, 0), (1, 7, 6), (4, 4, 0), (3, 8, 5), (3, 8, 2)])
def test_shift_and_spread_bring_every_distance_to_its_pair(q_time: int, k_time: int, offset: int) -> None:
    alignment = Alignment(torch.zeros(2, q_time), torch.zeros(2, k_time), offset)
    every = alignment.all_distances()
    expected = torch.tensor([[offset + row - column for column in range(k_time)] for row in range(q_time)])
    assert torch.equal(alignment.distances()[0], expected)
    assert torch.equal(spread(every, q_time), expected)
    tagged = every + 100 * torch.arange(q_time)[:, None]  # tells rows apart
    assert torch.equal(shift(tagged.expand(2, -1, -1))[1], expected + 100 * torch.arange(q_time)[:, None])


def test_jumping_positions_have_no_single_row_of_distances() -> None:
    alignment = Alignment(torch.tensor([[4, 9]]), torch.tensor([[0, 4, 9]]), None)
    assert torch.equal(alignment.distances(), torch.tensor([[[4, 0, -5], [9, 5, 0]]]))
    with pytest.raises(ValueError, match="jump"):
        alignment.all_distances()
