from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lcbench
from lcbench.attention.base import Attention, Context
from lcbench.attention.longformer import Longformer
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from tests.position.harness import consecutive, distance

LENGTH = 24


def layer_of(name: str = "longformer", position: Any = "rope", seed: int = 0, **options: Any) -> Attention:
    torch.manual_seed(seed)
    return lcbench.build_attention(name, d_model=16, n_heads=2, position=position, **options).double()


def inputs(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def facts(together: bool, length: int = LENGTH) -> Context:
    return dataclasses.replace(consecutive(length), together=together)


def full_like(layer: Attention) -> Attention:
    full = layer_of("full")
    full.load_state_dict(layer.state_dict(), strict=False)
    return full


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("options", [{"window": 2 * LENGTH}, {"window": 4, "global_tokens": LENGTH}])
def test_all_in_the_window_or_all_global_is_full_attention(options: dict[str, Any], together: bool) -> None:
    """The maps of global tokens start as copies, so that the second holds for a new layer."""
    layer = layer_of(**options)
    ours, full = (one(inputs(), facts(together)).y for one in (layer, full_like(layer)))
    assert distance(ours, full) < 1e-12


@pytest.mark.parametrize("position", ["rope", "relative", "cope"])
def test_a_window_alone_is_the_sliding_window(position: str) -> None:
    """With every kind of encoding, one that counts what lies between included, cut anywhere."""
    told: Any = {"name": position} | {"relative": {"context": 9}, "cope": {"p_max": 6}}.get(position, {})
    ours, other = layer_of(position=told, window=5), layer_of("sliding_window", position=told, window=5)
    expected = other(inputs(), facts(False)).y
    assert distance(ours(inputs(), facts(False)).y, expected) < 1e-12
    first = ours(inputs()[:, :7], facts(False, 7))
    rest = ours(inputs()[:, 7:], consecutive(LENGTH - 7, start=7), first.state)
    assert distance(torch.cat([first.y, rest.y], 1), expected) < 1e-12


@pytest.mark.parametrize("together", [False, True])
def test_dilation_is_a_window_on_every_residue_class(together: bool) -> None:
    dilated, window = layer_of(position="none", window=5, dilation=3), layer_of(position="none", window=5)
    y = dilated(inputs(), facts(together)).y
    for residue in range(3):
        of_class = inputs()[:, residue::3]
        assert distance(y[:, residue::3], window(of_class, facts(together, of_class.shape[1])).y) < 1e-12


@pytest.mark.parametrize(("together", "reached"), [(False, range(12, 17)), (True, range(10, 15))])
def test_a_token_is_seen_from_its_window_only(together: bool, reached: range) -> None:
    """w = 5: causal, the last five positions; both ways, two on each side."""
    layer, x = layer_of(window=5), inputs()
    changed = x.clone()
    changed[:, 12] += 1
    moved = (layer(changed, facts(together)).y - layer(x, facts(together)).y).abs().sum((0, 2)) > 1e-9
    assert moved.nonzero()[:, 0].tolist() == list(reached)


def stacked(layers: list[Attention], x: Tensor, read: Callable[[Attention, Tensor], Tensor]) -> Tensor:
    for layer in layers:
        x = x + read(layer, x)
    return x


def causal(layer: Attention, x: Tensor) -> Tensor:
    return layer(x, facts(False)).y


def test_layers_reach_so_far_and_no_further() -> None:
    """Through L layers position t reaches ``t + L (w - 1)``."""
    layers, x = [layer_of(window=4, seed=seed) for seed in range(3)], inputs()
    changed = x.clone()
    changed[:, 2] += 1
    moved = (stacked(layers, changed, causal) - stacked(layers, x, causal)).abs().sum((0, 2))
    assert moved[2 + 3 * 3] > 1e-9
    assert not (moved[2 + 3 * 3 + 1 :] > 1e-12).any()


def test_a_far_token_is_read_through_global_ones_only() -> None:
    """Both ways: what an ordinary row far away becomes depends on a far token through G, one layer later."""
    layers, x = [layer_of(window=4, global_tokens=2, seed=seed) for seed in range(2)], inputs()
    changed = x.clone()
    changed[:, 20] += 1
    one = (layers[0](changed, facts(True)).y - layers[0](x, facts(True)).y).abs().sum((0, 2)) > 1e-9
    assert one.nonzero()[:, 0].tolist() == [0, 1, 18, 19, 20, 21, 22]
    read = lambda layer, x: layer(x, facts(True)).y  # noqa: E731
    assert ((stacked(layers, changed, read) - stacked(layers, x, read)).abs().sum((0, 2)) > 1e-9).all()


def test_global_rows_that_read_the_future_leak_it_and_ours_do_not() -> None:
    """In a decoder, rows of global tokens that read both ways change nothing before t in the first layer but
    themselves, and everything in the second."""
    layers, x = [layer_of(window=4, global_tokens=2, seed=seed) for seed in range(2)], inputs()
    changed = x.clone()
    changed[:, 20] += 1

    def leaking(layer: Attention, x: Tensor) -> Tensor:
        return torch.cat([layer(x, facts(True)).y[:, :2], causal(layer, x)[:, 2:]], 1)

    def before(read: Callable[[Attention, Tensor], Tensor], many: int) -> Tensor:
        moved = stacked(layers[:many], changed, read) - stacked(layers[:many], x, read)
        return moved[:, :20].abs().sum((0, 2)) > 1e-9

    assert before(leaking, 1).nonzero()[:, 0].tolist() == [0, 1]
    assert before(leaking, 2).all()
    assert not before(causal, 2).any()


def test_a_global_token_in_the_window_counts_once() -> None:
    """Equal values but for the global token's: its weight shows in the output."""
    layer = layer_of(position="none", window=LENGTH, global_tokens=1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()  # all scores are equal
        layer.v.weight.copy_(torch.eye(16))
        layer.output.weight.copy_(torch.eye(16))
    x = torch.zeros(1, LENGTH, 16, dtype=torch.float64)
    x[:, 0] = 1
    y = layer(x, facts(False)).y[0, 1:, 0]
    assert distance(y, 1 / torch.arange(2.0, LENGTH + 1, dtype=torch.float64)) < 1e-12


def test_the_state_is_bounded_by_each_heads_dilation() -> None:
    layer = layer_of(window=4, dilation=[1, 3], global_tokens=2)
    state = layer(inputs(200), consecutive(200)).state
    assert [keys.length for keys in state.local] == [3, 9]
    assert [keys.length for keys in (*state.far, state.own)] == [2, 2, 2]


def test_windows_and_dilations_by_layer() -> None:
    def layer(n: int) -> Longformer:
        shape = LayerShape(16, 2, layer=n, n_layers=3)
        return Longformer(shape, PositionEncoding(shape), window=[32, 64, 512], dilation=[[1, 1], [1, 1], [1, 2]])

    assert [layer(n).window for n in range(3)] == [32, 64, 512]
    assert [layer(n).heads.groups for n in range(3)] == [[[0, 1]], [[0, 1]], [[0], [1]]]


@pytest.mark.parametrize(
    ("options", "position", "says"),
    [
        ({"window": 0}, "rope", "attention.window=1"),
        ({"window": [4, 4]}, "rope", "names 2 layers, and there are 1"),
        ({"dilation": 0}, "rope", "attention.dilation=1"),
        ({"dilation": [1, 1, 2]}, "rope", "names 3 heads of a layer, and there are 2"),
        ({"dilation": [[1, 1], [1, 2]]}, "rope", "names 2 layers, and there are 1"),
        ({"dilation": []}, "rope", "names 0 heads of a layer"),
        ({"global_tokens": -1}, "rope", "attention.global_tokens=0"),
        ({"global_tokens": 1}, {"name": "cope", "p_max": 4}, "position Cope"),
        ({"dilation": 2}, {"name": "cope", "p_max": 4}, "position Cope"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], position: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        layer_of(position=position, **options)


def test_an_encoding_of_the_past_refuses_to_read_ahead() -> None:
    with pytest.raises(ConfigurationError, match="reads both ways"):
        layer_of(position="alibi")(inputs(), facts(True))
