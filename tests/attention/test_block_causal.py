"""Blockwise causal attention: what it changes, what it leaves alone, and the mechanism configured within it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import lcbench
from lcbench.attention.base import Attention, Context, State
from lcbench.attention.block_causal import BlockCausal, BlockState
from lcbench.attention.reach import Segment
from lcbench.attention.scoring import attend
from lcbench.composition import changed, from_config, sweep_arguments
from lcbench.errors import ConfigurationError

WIDTH, HEADS, T, TIME = 16, 2, 12, 45


def layer(inner: Any = "full", position: str = "rope", length: int = T) -> BlockCausal:
    torch.manual_seed(0)
    sizes = {"d_model": WIDTH, "n_heads": HEADS}
    made = lcbench.build_attention("block_causal", position=position, inner=inner, length=length, **sizes)
    assert isinstance(made, BlockCausal)
    return made.double().eval()


def inputs(time: int = TIME, batch: int = 2) -> tuple[Tensor, Context]:
    x = torch.randn(batch, time, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, Context(torch.arange(time).repeat(batch, 1))


@pytest.mark.parametrize("position", ["none", "rope", "alibi", "t5"])
def test_around_full_attention_it_is_the_own_and_the_previous_block(position: str) -> None:
    """With an encoding of distances, one mask says it all."""
    x, context = inputs()
    module = layer(position=position)
    inner: Any = module.inner
    q, keys = inner.project(x, context)
    reach = Segment(T // 2, memory=T // 2)
    expected = inner.merge(attend(q, context, keys, module.position, reach=reach))
    torch.testing.assert_close(module(x, context).y, expected)


@pytest.mark.parametrize(
    "inner",
    [
        "full",
        {"name": "sliding_window", "window": 9},
        {"name": "dilated", "segments": [4, 12], "dilations": [1, 2]},
        {"name": "shifted", "group": 4},
    ],
)
def test_up_to_the_trained_length_and_in_training_it_is_the_mechanism_within(inner: Any) -> None:
    x, context = inputs()
    module = layer(inner)
    expected = module.inner(x, context).y
    torch.testing.assert_close(module(x, context).y[:, :T], expected[:, :T])
    assert not torch.allclose(module(x, context).y[:, T:], expected[:, T:])
    module.train()
    torch.testing.assert_close(module(x, context).y, module.inner(x, context).y)
    assert type(module(x, context).state) is type(module.inner(x, context).state)
    assert module.state_bytes(2, TIME, torch.float64) == module.inner.state_bytes(2, TIME, torch.float64)


def test_nothing_beyond_the_previous_block_is_read() -> None:
    """By gradient: through one layer, an output reaches back to the start of the previous block exactly."""
    module = layer({"name": "dilated", "segments": [4, 12], "dilations": [1, 1]})
    x, context = inputs(batch=1)
    x.requires_grad_()
    y = module(x, context).y
    for t in (5, 6, 11, 12, 30, 44):
        (gradient,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        reached = gradient[0].any(-1).nonzero()[:, 0]
        assert reached.min() >= max(0, (t // 6 - 1) * 6)
        assert reached.max() == t


def test_a_window_within_half_of_the_length_is_left_as_it_is() -> None:
    x, context = inputs()
    module = layer({"name": "sliding_window", "window": T // 2 + 1})
    torch.testing.assert_close(module(x, context).y, module.inner(x, context).y)


def held_after(module: Attention, context: Context, calls: int) -> int:
    state: State | None = None
    x = torch.randn(*context.positions.shape, WIDTH, dtype=torch.float64)
    for n in range(calls):
        told = dataclasses.replace(context, positions=context.positions + n * context.positions.shape[1])
        state = module(x, told, state).state
    assert isinstance(state, BlockState)
    return state.nbytes


def test_the_state_stops_growing_even_where_rows_differ() -> None:
    module = layer()
    _, context = inputs(8)
    padded = dataclasses.replace(context, padding=torch.zeros_like(context.positions, dtype=torch.bool))
    assert held_after(module, context, 4) <= 2 * 2 * T * module.inner.state_bytes(1, 1, torch.float64) + 50
    assert held_after(module, padded, 40) == held_after(module, padded, 4)


@pytest.mark.parametrize("name", ["linear", "infini", "transformer_xl", "compressive", "memorizing", "focused"])
def test_a_mechanism_that_remembers_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"attention\.inner=\w+ carries what lies beyond"):
        layer(name, position="none" if name != "transformer_xl" else "rope")


def test_mistakes_are_named() -> None:
    for length, closest in ((7, 8), (1, 2), (0, 2)):
        with pytest.raises(ConfigurationError, match=rf"attention\.length={length} .*attention\.length={closest}"):
            layer(length=length)
    with pytest.raises(ConfigurationError, match="AbsoluteSinusoidal adds absolute places"):
        layer(position="absolute_sinusoidal")
    with pytest.raises(ConfigurationError, match="BlockCausal carries"):
        layer("block_causal")


BCA = ["attention=block_causal", "attention.inner=dilated", "attention.inner.segments=[16,64]"]
BCA += ["attention.inner.dilations=[1,4]", "position=rope", "task.length=32"]


def test_the_mechanism_within_is_chosen_and_configured_on_the_command_line() -> None:
    composition = lcbench.compose(BCA)
    node = composition.config["attention"]
    assert node["length"] == 32
    assert node["inner"]["_target_"] == "lcbench.attention.dilated.Dilated"
    assert node["inner"]["segments"] == [16, 64]
    assert node["inner"]["detach_mixture"] is False  # filled in
    assert ("attention.inner", "dilated") in composition.differs
    assert from_config(composition.config).config == composition.config
    assert lcbench.compose(["attention=block_causal"]).config["attention"]["inner"] == {
        "_target_": "lcbench.attention.full.Full"
    }
    assert "attention@attention.inner=full,dilated" in sweep_arguments(
        ["attention=block_causal", "attention.inner=full,dilated"], []
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["attention.inner=full"], r"attention\.inner: the attention that was chosen has no other"),
        (
            ["attention=block_causal", "attention.inner=ful"],
            r"attention\.inner=ful: no such choice; the closest is full",
        ),
        ([*BCA, "attention.inner.segmants=[2]"], r"attention\.inner\.segmants.*closest is attention\.inner\.segments"),
        ([*BCA, "attention.inner.dilations=[x]"], r"attention\.inner\.dilations.*command line"),
    ],
)
def test_mistakes_within_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        lcbench.compose(overrides)
    assert "\n" not in str(caught.value)


def test_a_config_from_elsewhere_may_not_name_foreign_code_within() -> None:
    config = lcbench.compose(BCA).config
    config["attention"]["inner"]["_target_"] = "somewhere.Else"
    with pytest.raises(ConfigurationError, match=r"attention\.inner\._target_=somewhere\.Else"):
        from_config(config)
    del config["attention"]["inner"]
    with pytest.raises(ConfigurationError, match=r"attention\.inner is missing"):
        changed(config, (), (), "")


def test_a_network_reads_far_beyond_its_trained_length() -> None:
    """A whole network, fed whole and in chunks with its state, while training stays as long as it was."""
    model = lcbench.build_model([*BCA, "model.d_model=16", "model.n_heads=2"]).eval()
    tokens = torch.randint(5, (2, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(tokens).logits
        state, parts = None, []
        for part in tokens.split([40, 1, 59, 50], 1):
            output = model(part, state=state)
            state = output.state
            parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    assert state is not None
    assert state.nbytes == model.state_bytes(2, 150, torch.float32)


def test_layers_within_share_what_they_share_without() -> None:
    """LongT5's table of block distances is one for all layers of a stack."""
    first, second = (layer({"name": "longt5_global", "radius": 4, "block": 2}, position="t5") for _ in range(2))
    second.share(first)
    shared = {name for name, own in second.inner.named_parameters() if own is first.inner.get_parameter(name)}
    assert shared == {"of_blocks.table"}
