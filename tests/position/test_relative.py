from __future__ import annotations

import pytest
import torch

from lcbench.errors import ConfigurationError
from lcbench.position.alibi import Alibi, slopes
from lcbench.position.base import LayerShape
from lcbench.position.relative import Relative
from lcbench.position.relative_capped import RelativeCapped
from lcbench.position.transformer_xl import TransformerXL
from tests.position.harness import attention, build, consecutive, distance, draw, unplaced


@pytest.mark.parametrize("encoding", [Relative, RelativeCapped])
def test_the_table_has_the_stated_deviation(encoding: type[Relative]) -> None:
    torch.manual_seed(0)
    made = encoding(LayerShape(64, 4), context=512)
    assert made.table.shape == (512, 16)
    assert float(made.table.detach().std()) == pytest.approx(0.25, rel=0.02)


def test_with_a_table_for_all_distances_the_cap_is_out_of_reach() -> None:
    tensors, context = draw(9), consecutive(9)
    plain, capped = build(Relative, {"context": 9}), build(RelativeCapped, {"context": 9})
    assert distance(attention(plain, tensors, context), attention(capped, tensors, context)) < 1e-12
    plain, capped = build(Relative, {"context": 8}), build(RelativeCapped, {"context": 8})
    assert distance(attention(plain, tensors, context), attention(capped, tensors, context)) > 1e-3


def test_alibi_is_a_relative_encoding_of_a_constant_channel() -> None:
    shape = LayerShape(d_model=8, n_heads=1)
    q, k, v, x = draw(9, shape=shape)
    with torch.no_grad():
        q[..., 0], k[..., 0] = 1.0, 0.0
    alibi, relative = build(Alibi, {}, shape), build(Relative, {"context": 9}, shape)
    with torch.no_grad():
        relative.table.zero_()
        relative.table[:, 0] = -slopes(1)[0] * torch.arange(9).double() * 8**0.5
    context = consecutive(9)
    assert distance(attention(alibi, (q, k, v, x), context), attention(relative, (q, k, v, x), context)) < 1e-12


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (1, [2**-8]),
        (4, [1 / 4, 1 / 16, 1 / 64, 1 / 256]),
        (6, [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]),
        (8, [2.0**-h for h in range(1, 9)]),
    ],
)
def test_alibi_slopes(heads: int, expected: list[float]) -> None:
    assert slopes(heads) == expected


def test_transformer_xl_clamps_in_evaluation_only() -> None:
    tensors, context = draw(9), consecutive(9)
    free, clamped = build(TransformerXL, {}), build(TransformerXL, {"clamp_length": 3})
    for claim in (context, unplaced(context)):
        expected = attention(free, tensors, claim)
        assert distance(attention(clamped.eval(), tensors, claim), expected) > 1e-3
        assert distance(attention(clamped.train(), tensors, claim), expected) < 1e-12


def test_transformer_xl_parameters_have_the_stated_deviation() -> None:
    torch.manual_seed(0)
    made = TransformerXL(LayerShape(64, 4))
    assert {name: p.shape for name, p in made.named_parameters()} == {
        "u": (4, 16),
        "w": (4, 16),
        "relative.weight": (64, 64),
    }
    for parameter in made.parameters():
        assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.25)
    with pytest.raises(ConfigurationError, match=r"model.d_model=5 .* 6"):
        TransformerXL(LayerShape(5, 1))
