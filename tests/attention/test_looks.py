"""Maps of attention are what the layer reads with: weights times values are its output."""

from __future__ import annotations

import pytest
import torch

import lcbench
from lcbench.attention.base import Context
from lcbench.attention.multi_head import MultiHead
from lcbench.errors import ConfigurationError

HEADS, WIDTH, TIME = 2, 16, 23
POSITIONS = {
    "rope": {},
    "alibi": {},
    "t5": {},
    "relative": {"context": TIME},
    "cope": {"p_max": 9},
    "cope_rope": {"context": TIME, "gates": "values"},
    "cope_relative": {"context": TIME, "gates": "separate_keys"},
}
MECHANISMS = {
    "full": {},
    "sliding_window": {"window": 5},
    "transformer_xl": {"segment": 4},
    "shifted": {"group": 4},
    "longt5_local": {"radius": 6},
}
#: places from which a query at i sees, by mechanism
SINCE = {
    "full": lambda i: 0,
    "sliding_window": lambda i: i - 4,
    "transformer_xl": lambda i: i - i % 4 - 4,
    "shifted": lambda i: 0,
    "longt5_local": lambda i: i - 6,
}


def layer_of(name: str, position: str) -> MultiHead:
    torch.manual_seed(0)
    options = {f"position.{key}": value for key, value in POSITIONS[position].items()}
    words = [f"position={position}", *(f"{key}={value}" for key, value in options.items())]
    words += [f"attention={name}", *(f"attention.{key}={value}" for key, value in MECHANISMS[name].items())]
    words += [
        f"model.d_model={WIDTH}",
        f"model.n_heads={HEADS}",
        "model.n_layers=1",
        f"task.length={TIME + 1}",
        "task=flip_flop",
    ]
    model = lcbench.build_model([*words, "evaluation.sets=[in_distribution]"])
    layer = model.attentions[0].double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            # tables start at zero, where nothing counts
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return layer


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", MECHANISMS)
def test_weights_reproduce_the_layers_output(name: str, position: str) -> None:
    layer = layer_of(name, position)
    x = torch.randn(2, TIME, WIDTH, dtype=torch.float64)
    context = Context(torch.arange(TIME).expand(2, -1))
    looks = layer.looks(x, context)
    assert looks.weights.shape == (2, HEADS, TIME, TIME)
    torch.testing.assert_close(looks.weights.sum(-1), torch.ones(2, HEADS, TIME, dtype=torch.float64))
    i, j = torch.arange(TIME)[:, None], torch.arange(TIME)[None]
    since = torch.tensor([SINCE[name](place) for place in range(TIME)])[:, None]
    visible = (j <= i) & (j >= since)
    assert not looks.weights[..., ~visible].any()
    assert (looks.weights[..., visible] > 0).all()
    with torch.no_grad():
        y = layer.merge(looks.weights @ layer.split(layer.v(x)))
        torch.testing.assert_close(y, layer(x, context).y)


@pytest.mark.parametrize("position", ["cope", "cope_rope", "cope_relative"])
@pytest.mark.parametrize("name", ["full", "sliding_window"])
def test_gates_are_those_that_the_positions_count(name: str, position: str) -> None:
    layer = layer_of(name, position)
    cope = layer.position if position == "cope" else layer.position.cope
    x = torch.randn(1, TIME, WIDTH, dtype=torch.float64)
    context = Context(torch.arange(TIME)[None])
    counts = layer.looks(x, context).counts
    assert counts is not None
    gates, positions = counts.gates, counts.positions
    assert ((gates >= 0) & (gates <= 1)).all()
    hidden = torch.arange(TIME)[None] > torch.arange(TIME)[:, None]
    assert not gates[..., hidden].any()
    assert (gates[..., ~hidden] > 0).any()
    # the definition, pair by pair
    for i in range(TIME):
        for j in range(i + 1):
            whole = gates[0, :, i, j : i + 1].sum(-1).clamp(max=cope.p_max - 1)
            seen = gates[0, :, i, j] > 0
            torch.testing.assert_close(positions[0, :, i, j][seen], whole[seen])
    # and what the layer adds to its scores is read off the table at these positions
    if position == "cope" and name == "full":
        q = layer.split(layer.q(x))
        z = torch.cat([q @ cope.table.T, (q @ cope.table.T)[..., -1:]], -1)
        floor = positions.long()
        share = positions - floor
        b = (1 - share) * z.gather(-1, floor) + share * z.gather(-1, floor + 1)
        scores = (q @ layer.split(layer.k(x)).transpose(-1, -2) + b) * (WIDTH // HEADS) ** -0.5
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        torch.testing.assert_close(weights, layer.looks(x, context).weights)
    assert layer_of("full", "rope").looks(x, context).counts is None


def test_a_mechanism_without_such_weights_says_so() -> None:
    layer = lcbench.build_attention("infini", d_model=16, n_heads=2, segment=4)
    with pytest.raises(ConfigurationError, match=r"Infini has no map of weights.*attention=full"):
        layer.looks(torch.randn(1, 4, 16), Context(torch.arange(4)[None]))
    layer = lcbench.build_attention("longt5_global", d_model=16, n_heads=2)
    with pytest.raises(ConfigurationError, match="LongT5Global has no map of weights"):
        layer.looks(torch.randn(1, 4, 16), Context(torch.arange(4)[None]))
