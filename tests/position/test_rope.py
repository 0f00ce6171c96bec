"""RoPE and the ways to stretch it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape
from lcbench.position.dynamic_ntk import DynamicNtk
from lcbench.position.ntk import Ntk
from lcbench.position.pi import PositionInterpolation
from lcbench.position.rope import Rope
from lcbench.position.yarn import Yarn
from tests.position.harness import attention, build, consecutive, distance, draw

SHAPE = LayerShape(d_model=64, n_heads=1)


def test_scores_depend_on_the_distance_alone() -> None:
    made = Rope(SHAPE)
    q, k = torch.randn(2, 1, 1, 1, 64, dtype=torch.float64)

    def score(i: int, j: int) -> float:
        q_turned, k_turned = made.rotate(q, k, torch.tensor([[i]]), torch.tensor([[j]]))
        return float((q_turned * k_turned).sum())

    assert score(7, 3) == pytest.approx(score(100_007, 100_003), abs=1e-6)
    assert abs(score(7, 3) - score(8, 3)) > 1e-3


def test_the_pairings_differ_by_the_order_of_channels() -> None:
    x = torch.randn(1, 1, 5, 64, dtype=torch.float64)
    positions = torch.arange(5)[None]
    order = torch.cat([torch.arange(0, 64, 2), torch.arange(1, 64, 2)])
    interleaved, _ = Rope(SHAPE).rotate(x, x, positions, positions)
    halves, _ = Rope(SHAPE, pairing="halves").rotate(x[..., order], x, positions, positions)
    assert distance(interleaved[..., order], halves) < 1e-12


def test_the_rest_of_the_channels_is_left_alone() -> None:
    x = torch.randn(1, 1, 5, 64)
    positions = torch.arange(1, 6)[None]
    turned, _ = Rope(SHAPE, channels=16).rotate(x, x, positions, positions)
    assert torch.equal(turned[..., 16:], x[..., 16:])
    assert bool((turned[..., :16] != x[..., :16]).all())


def test_angles_of_half_precision_are_computed_in_float32() -> None:
    x = torch.randn(1, 1, 1, 64)
    positions = torch.tensor([[40_001]])
    exact, _ = Rope(SHAPE).rotate(x.double(), x, positions, positions)
    coarse, _ = Rope(SHAPE).rotate(x.bfloat16(), x, positions, positions)
    assert coarse.dtype == torch.bfloat16
    assert distance(exact, coarse.double()) < 0.05


def test_interpolated_positions_are_fractions_of_positions() -> None:
    x = torch.randn(1, 1, 3, 64, dtype=torch.float64)
    positions = torch.tensor([[8, 16, 800]])
    stretched, _ = PositionInterpolation(SHAPE, scale=8).rotate(x, x, positions, positions)
    plain, _ = Rope(SHAPE).rotate(x, x, positions // 8, positions)
    assert distance(stretched, plain) < 1e-12


def test_ntk_keeps_the_highest_frequency_and_divides_the_lowest_by_the_scale() -> None:
    ratio = Rope(SHAPE).frequencies() / Ntk(SHAPE, scale=8).frequencies()
    assert float(ratio[0]) == pytest.approx(1)
    assert float(ratio[-1]) == pytest.approx(8)
    assert bool((ratio.diff() > 0).all())


@pytest.mark.parametrize("ramp", ["paper", "released"])
def test_yarn_mixes_the_two(ramp: Any) -> None:
    plain = Rope(SHAPE).frequencies()
    ratio = plain / Yarn(SHAPE, context=512, scale=8, ramp=ramp).frequencies()
    assert bool(((ratio >= 1 - 1e-12) & (ratio <= 8 + 1e-9)).all())
    turns = 512 * plain / (2 * math.pi)
    assert torch.allclose(ratio[turns >= 40], torch.ones_like(ratio[turns >= 40]))
    assert torch.allclose(ratio[turns <= 0.7], 8 * torch.ones_like(ratio[turns <= 0.7]))


@pytest.mark.parametrize(("head_dim", "context", "low", "high"), [(128, 4096, 20, 46), (64, 512, 3, 16)])
def test_the_released_ramp_has_the_released_ends(head_dim: int, context: int, low: int, high: int) -> None:
    kept = Yarn(LayerShape(head_dim, 1), context=context, ramp="released").kept
    expected = 1 - ((torch.arange(head_dim // 2) - low) / (high - low)).clamp(0, 1)
    assert torch.allclose(kept, expected.double())


def test_the_papers_ramp_is_linear_in_turns() -> None:
    made = Yarn(SHAPE, context=512)
    turns = 512 * Rope(SHAPE).frequencies() / (2 * math.pi)
    assert torch.allclose(made.kept, ((turns - 1) / 31).clamp(0, 1))
    assert not torch.allclose(made.kept, Yarn(SHAPE, context=512, ramp="released").kept, atol=0.05)


def test_yarn_multiplies_scores_by_the_square_of_its_temperature() -> None:
    made = Yarn(SHAPE, context=512, scale=8)
    assert made.magnitude() == pytest.approx(1.208, abs=5e-4)
    q = torch.randn(1, 1, 1, 64, dtype=torch.float64)
    turned, same = made.rotate(q, q, torch.tensor([[5]]), torch.tensor([[5]]))
    assert float((turned * same).sum()) == pytest.approx(float((q * q).sum()) * made.magnitude() ** 2)


@pytest.mark.parametrize(
    "stretched",
    [
        PositionInterpolation(SHAPE, scale=1),
        Ntk(SHAPE, scale=1),
        Yarn(SHAPE, context=512, scale=1),
        Yarn(SHAPE, context=512, scale=1, ramp="released"),
        DynamicNtk(SHAPE, context=64),
    ],
)
def test_unstretched_they_are_rope(stretched: Rope) -> None:
    q, k = torch.randn(2, 1, 1, 64, 64, dtype=torch.float64)
    positions = torch.arange(64)[None]
    for ours, ropes in zip(
        stretched.rotate(q, k, positions, positions), Rope(SHAPE).rotate(q, k, positions, positions), strict=True
    ):
        assert distance(ours, ropes) < 1e-12


def test_dynamic_ntk_leaves_the_fused_path_only_beyond_its_window() -> None:
    made = DynamicNtk(SHAPE, context=64)
    assert not made.reads_content(torch.arange(64)[None])
    assert made.reads_content(torch.arange(65)[None])
    assert made.reads_content(torch.tensor([[64]]))


def test_dynamic_ntk_is_rope_inside_its_window_and_ntk_at_the_last_query() -> None:
    tensors, context = draw(12), consecutive(12)
    dynamic, plain, static = build(DynamicNtk, {"context": 4}), build(Rope, {}), build(Ntk, {"scale": 3.0})
    ours = attention(dynamic, tensors, context)
    assert distance(ours[:, :, :4], attention(plain, tensors, context)[:, :, :4]) < 1e-12
    assert distance(ours[:, :, -1], attention(static, tensors, context)[:, :, -1]) < 1e-12
    assert distance(ours[:, :, 6], attention(plain, tensors, context)[:, :, 6]) > 1e-4


@pytest.mark.parametrize(
    ("encoding", "options", "message"),
    [
        (Rope, {"channels": 7}, "position.channels=7 .* the closest is 6"),
        (Rope, {"channels": 80}, "position.channels=80 .* the closest is 64"),
        (Ntk, {"scale": 0.5}, "position.scale=0.5 .* 1"),
        (Ntk, {"channels": 2}, "position.channels=2 .* 4"),
        (DynamicNtk, {"context": 8, "factor": 0.0}, "position.factor=0.0"),
        (Yarn, {"context": 8, "scale": -1.0}, "position.scale=-1.0"),
    ],
)
def test_mistakes(encoding: type[Rope], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        encoding(SHAPE, **options)


def test_an_odd_head_cannot_be_turned() -> None:
    with pytest.raises(ConfigurationError, match="head dimension"):
        Rope(LayerShape(10, 2))
