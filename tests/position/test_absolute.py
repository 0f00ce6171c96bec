from __future__ import annotations

import pytest
import torch

from lcbench.errors import ConfigurationError
from lcbench.position.absolute_learned import AbsoluteLearned
from lcbench.position.absolute_sinusoidal import AbsoluteSinusoidal
from lcbench.position.base import LayerShape


def test_the_learned_table_has_the_stated_deviation() -> None:
    torch.manual_seed(0)
    made = AbsoluteLearned(LayerShape(64, 4), max_length=512)
    assert made.max_length == 512
    assert float(made.table.detach().std()) == pytest.approx(64**-0.5, rel=0.02)


def test_a_position_beyond_the_learned_table_is_named() -> None:
    made = AbsoluteLearned(LayerShape(8, 2), max_length=4)
    with pytest.raises(IndexError, match="max_length=4"):
        made.embed(torch.zeros(1, 5, 8), torch.arange(5)[None])


def test_sine_and_cosine_alternate() -> None:
    embedded = AbsoluteSinusoidal(LayerShape(4, 1)).embed(torch.zeros(1, 2, 4), torch.tensor([[0, 100]]))
    assert torch.equal(embedded[0, 0], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    expected = torch.tensor([100.0, 100.0, 1.0, 1.0])
    assert torch.allclose(embedded[0, 1, 0::2], expected[0::2].sin(), atol=1e-5)
    assert torch.allclose(embedded[0, 1, 1::2], expected[1::2].cos(), atol=1e-5)


def test_an_odd_width_has_no_pairs() -> None:
    with pytest.raises(ConfigurationError, match=r"model.d_model=5 .* 6"):
        AbsoluteSinusoidal(LayerShape(5, 1))
