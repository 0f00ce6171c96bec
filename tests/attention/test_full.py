from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lcbench.attention.base import Attention, Context, State
from lcbench.attention.cache import KeyValues
from lcbench.attention.full import Full
from lcbench.conformance import LAWS, certify, oracle_of
from lcbench.position.alibi import Alibi
from lcbench.position.base import LayerShape
from lcbench.position.cope import Cope
from lcbench.position.none import NoPosition
from tests.position.harness import consecutive, distance

SHAPE = LayerShape(d_model=16, n_heads=2)
LENGTH = 11


def read(layer: Attention, x: Tensor, context: Context, sizes: list[int]) -> tuple[Tensor, State | None]:
    """Outputs ``[batch, time, d_model]`` of reading ``x`` in pieces of ``sizes``, and the last state."""
    state, start, outputs = None, 0, []
    for size in sizes:
        part = slice(start, start + size)
        output = layer(x[:, part], context.map(lambda tensor, part=part: tensor[:, part]), state)
        state, start = output.state, part.stop
        outputs.append(output.y)
        assert output.losses == {}
    return torch.cat(outputs, 1), state


@pytest.fixture(params=["none", "gates"])
def layer(request: pytest.FixtureRequest) -> Full:
    torch.manual_seed(0)
    encoding = NoPosition(SHAPE) if request.param == "none" else Cope(SHAPE, context=LENGTH, gates="separate_keys")
    made = Full(SHAPE, encoding).double()
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.normal_()
    return made


@pytest.mark.parametrize("sizes", [[1] * LENGTH, [4, 7], [1, 9, 1], [0, 5, 0, 6]])
def test_pieces_give_what_the_whole_gives(layer: Full, sizes: list[int]) -> None:
    x, context = torch.randn(3, LENGTH, 16, dtype=torch.float64), consecutive(LENGTH, batch=3)
    whole, _ = read(layer, x, context, [LENGTH])
    pieces, state = read(layer, x, context, sizes)
    assert distance(whole, pieces) < 1e-12
    assert state is not None
    assert state.nbytes == layer.state_bytes(3, LENGTH, torch.float64)


def test_a_reset_row_begins_anew(layer: Full) -> None:
    x, context = torch.randn(2, LENGTH, 16, dtype=torch.float64), consecutive(LENGTH)
    _, state = read(layer, x, context, [LENGTH])
    assert state is not None
    anew = state.reset(torch.tensor([True, False]))
    positions = torch.stack([torch.arange(4), torch.arange(LENGTH, LENGTH + 4)])
    output = layer(x[:, :4], Context(positions), anew).y
    fresh = layer(x[:, :4], consecutive(4)).y
    kept = layer(x[:, :4], consecutive(4, start=LENGTH), state).y
    assert distance(output[0], fresh[0]) < 1e-12
    assert distance(output[1], kept[1]) < 1e-12
    assert distance(fresh[1], kept[1]) > 1e-3


def test_the_definition() -> None:
    certificate = certify(
        lambda: Full(replace(SHAPE, bias=False), Alibi(SHAPE)),
        laws=tuple(law for law in LAWS if law.__name__ == "agrees_with_its_oracle"),
        oracle=oracle_of("full", "alibi", n_heads=2, attention_options={}, position_options={}),
    )
    assert certificate.passed, certificate.checks


def test_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    layer = Full(replace(SHAPE, dropout=0.5), NoPosition(SHAPE))
    x, context = torch.randn(2, LENGTH, 16), consecutive(LENGTH)
    assert distance(layer.eval()(x, context).y, layer(x, context).y) == 0
    assert distance(layer.train()(x, context).y, layer(x, context).y) > 1e-3


class TestKeyValues:
    def keys(self, time: int, **facts: Tensor) -> KeyValues:
        k, v = torch.randn(2, 2, 2, time, 8)
        return KeyValues.of(k, v, k[..., :3], Context(torch.arange(time).expand(2, time), **facts))  # type: ignore[arg-type]

    def test_append_keeps_order_and_fills_in_missing_facts(self) -> None:
        old = self.keys(3)
        new = self.keys(2, documents=torch.ones(2, 2, dtype=torch.int64), padding=torch.ones(2, 2, dtype=torch.bool))
        both = old.append(new)
        assert both.length == 5
        assert both.features is not None
        assert torch.equal(both.k, torch.cat([old.k, new.k], 2))
        assert torch.equal(both.features[:, :, :3], old.k[..., :3])
        assert both.documents is not None
        assert both.padding is not None
        assert both.documents.tolist() == [[0, 0, 0, 1, 1]] * 2
        assert both.padding.tolist() == [[False] * 3 + [True] * 2] * 2
        assert old.length == 3
        assert old.append(self.keys(1)).documents is None

    def test_consecutive_only_if_both_are(self) -> None:
        old, new = self.keys(3), self.keys(2)
        assert old.append(new).consecutive
        assert not old.append(replace(new, consecutive=False)).consecutive

    def test_select_reorders_rows(self) -> None:
        keys = self.keys(3)
        assert torch.equal(keys.select(torch.tensor([1, 1, 0])).k, keys.k[[1, 1, 0]])

    def test_reset_hides_rows(self) -> None:
        hidden = self.keys(3).reset(torch.tensor([False, True]))
        assert hidden.padding is not None
        assert hidden.padding.tolist() == [[False] * 3, [True] * 3]
