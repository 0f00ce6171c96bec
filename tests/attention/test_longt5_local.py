from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import lcbench
from lcbench.attention.base import Attention
from lcbench.errors import ConfigurationError
from tests.position.harness import consecutive, distance

LENGTH = 24


def layer_of(name: str = "longt5_local", position: Any = "t5", **options: Any) -> Attention:
    torch.manual_seed(0)
    return lcbench.build_attention(name, d_model=16, n_heads=2, position=position, **options).double()


def inputs() -> torch.Tensor:
    return torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("together", [False, True])
def test_a_radius_that_holds_everything_is_t5s_full_attention(together: bool) -> None:
    """T5's scores are ``q.k + bias``: those of full attention with W_q times ``sqrt(head_dim)``."""
    position = {"name": "t5", "two_sided": together}
    ours, full = layer_of(position=position, radius=LENGTH - 1), layer_of("full", position=position)
    weights = ours.state_dict()
    full.load_state_dict(weights | {name: weights[name] * 8**0.5 for name in ("q.weight", "q.bias")})
    context = dataclasses.replace(consecutive(LENGTH), together=together)
    assert distance(ours(inputs(), context).y, full(inputs(), context).y) < 1e-12


def test_the_maps_begin_as_those_of_t5() -> None:
    """W_q is smaller by ``sqrt(head_dim)``, so the scores at the start are those of a scaled layer."""
    ours, theirs = (layer_of(scaled=scaled)(inputs(), consecutive(LENGTH)).y for scaled in (False, True))
    assert distance(ours, theirs) < 1e-6


@pytest.mark.parametrize("radius", [0, 3])
def test_the_radius_is_exact_on_both_sides(radius: int) -> None:
    layer, x = layer_of(position="rope", radius=radius), inputs()
    context = dataclasses.replace(consecutive(LENGTH), together=True)
    changed = x.clone()
    changed[:, 12] += 1
    moved = (layer(changed, context).y - layer(x, context).y).abs().amax((0, 2)) > 1e-12
    assert moved.nonzero()[:, 0].tolist() == list(range(12 - radius, 12 + radius + 1))


def test_tokens_read_both_ways_see_what_was_read_before() -> None:
    """As if all had been read both ways at once."""
    layer, x = layer_of(position="rope", radius=5), inputs()
    first = layer(x[:, :10], consecutive(10))
    second = layer(x[:, 10:], dataclasses.replace(consecutive(LENGTH - 10, start=10), together=True), first.state)
    whole = layer(x, dataclasses.replace(consecutive(LENGTH), together=True))
    assert distance(second.y, whole.y[:, 10:]) < 1e-12


def test_an_encoding_without_a_future_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"LongT5Local reads both ways here, and position Alibi .*rope"):
        layer_of(position="alibi")(inputs(), dataclasses.replace(consecutive(LENGTH), together=True))


def test_a_negative_radius_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"attention\.radius=-1 .* attention\.radius=0\."):
        layer_of(radius=-1)
