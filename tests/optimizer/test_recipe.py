"""Schedules against their formulas, groups against a network, updates against the papers' equations."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from lcbench.optimizer.adam import Adam
from lcbench.optimizer.adamw import AdamW
from lcbench.position.base import LayerShape, PositionEncoding


def test_warm_up_then_shape():
    steps, warmup = 100, 10
    for schedule, expected in {
        "constant": lambda t: 1.0,
        "linear": lambda t: 1 - 0.9 * (t - warmup) / (steps - warmup),
        "cosine": lambda t: 0.1 + 0.9 * (1 + math.cos(math.pi * (t - warmup) / (steps - warmup))) / 2,
    }.items():
        recipe = AdamW(lr=2.0, schedule=schedule, warmup_steps=warmup, final_lr_ratio=0.1)
        rising = [recipe.rate(t, steps) for t in range(warmup)]
        assert rising == pytest.approx([2 * (t + 1) / 10 for t in range(warmup)])
        assert recipe.rate(55, steps) == pytest.approx(2 * expected(55))
        assert recipe.rate(steps, steps) == pytest.approx(2.0 if schedule == "constant" else 0.2)


def test_inverse_square_root_joins_its_warm_up():
    recipe = AdamW(lr=1.0, schedule="inverse_square_root", warmup_steps=400)
    assert recipe.rate(399, 10_000) == pytest.approx(1.0)
    assert recipe.rate(1599, 10_000) == pytest.approx(0.5)


class Encoding(PositionEncoding):
    def __init__(self, shape):
        super().__init__(shape)
        self.table = nn.Parameter(torch.zeros(3, 4))
        self.map = nn.Linear(4, 4, bias=False)


class Gate(nn.Module):
    own_group: ClassVar = {"beta": {"lr": 0.01}}

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(2))


def test_norms_biases_and_tables_are_not_decayed_and_own_groups_stand_apart():
    embedding = nn.Embedding(5, 4)
    head = nn.Linear(4, 5)
    head.weight = embedding.weight
    encoding, gate, inner = Encoding(LayerShape(4, 1)), Gate(), nn.Linear(4, 4)
    model = nn.ModuleList([embedding, inner, nn.LayerNorm(4), nn.RMSNorm(4), encoding, gate, head])
    decayed, plain, apart = AdamW(weight_decay=0.1).groups(model)
    assert {id(p) for p in decayed["params"]} == {id(inner.weight), id(encoding.map.weight)}
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    assert apart == {"params": [gate.beta], "weight_decay": 0.0, "lr": 0.01}
    listed = [id(p) for group in (decayed, plain, apart) for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    everything = AdamW(weight_decay=0.1, decay_all=True).groups(model)
    assert {id(p) for p in everything[0]["params"]} == {id(p) for p in model.parameters()} - {id(gate.beta)}


@pytest.mark.parametrize("recipe", [AdamW, Adam])
def test_one_update_follows_the_equation(recipe):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2, bias=False).double()
    weight, gradient = layer.weight.detach().clone(), torch.randn(2, 3).double()
    optimizer, _ = recipe(lr=0.1, weight_decay=0.5, betas=[0.8, 0.9], epsilon=1e-6).build(layer, 10)
    layer.weight.grad = gradient.clone()
    optimizer.step()
    if recipe is AdamW:
        expected = weight * (1 - 0.1 * 0.5) - 0.1 * gradient / (gradient.abs() + 1e-6)
    else:
        total = gradient + 0.5 * weight
        expected = weight - 0.1 * total / (total.abs() + 1e-6)
    torch.testing.assert_close(layer.weight.detach(), expected)
