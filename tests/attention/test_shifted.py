"""Shifted sparse attention: its training form is certified here, and the published roll is shown to leak."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

import lcbench
from lcbench.attention.base import Attention, Context
from lcbench.attention.full import Full
from lcbench.attention.shifted import Shifted
from lcbench.conformance import LAWS, carrying, certify, computing, find_oracle, reading
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape

WIDTH, HEADS, GROUP = 16, 4, 8


def layer(position: Any = "rope", **options: Any) -> Shifted:
    torch.manual_seed(0)
    made = lcbench.build_attention("shifted", d_model=WIDTH, n_heads=HEADS, position=position, **options)
    assert isinstance(made, Shifted)
    return made.double()


def inputs(time: int) -> tuple[Tensor, Context]:
    x = torch.randn(2, time, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, Context(torch.arange(time).repeat(2, 1))


class Trained(Shifted):
    """Reads as in training whatever mode it is put into: there is no dropout to tell the modes apart."""

    evaluation_differs = False

    def train(self, mode: bool = True) -> Self:
        return super().train(True)


@pytest.mark.parametrize("position", ["rope", "alibi", "cope"])
def test_the_training_form_is_certified(position: str) -> None:
    """All laws of a mechanism with a bounded state, and its own oracle; with a bias those that it may break."""
    encoding = {"name": "cope", "p_max": 8} if position == "cope" else position

    def make() -> Attention:
        made = lcbench.build_attention("shifted", d_model=WIDTH, n_heads=2, position=encoding, group=GROUP)
        return Trained(made.shape, made.position, group=GROUP)

    row_of = find_oracle(position).row
    options: dict[str, Any] = {"rope": {"base": 10000.0, "pairing": "interleaved", "channels": None}}.get(position, {})
    if position == "cope":
        options = {"p_max": 8, "context": None, "gates": "keys", "scaled_gates": True, "scaled_bias": True}
        options |= {"shared": False, "undersized": False}

    def oracle(x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor) -> Any:
        own = {name.removeprefix("position."): w for name, w in weights.items() if name.startswith("position.")}

        def row(i: int, q: Tensor, k: Tensor, v: Tensor, head: int) -> Tensor:
            return row_of(i, q, k, v, x, positions, own, head=head, n_heads=2, **options)

        sizes = {"n_heads": 2, "length": 64, "group": GROUP, "form": "cut"}
        return find_oracle("shifted").trained(x, weights, positions, landmarks, row=row, **sizes)

    some = (reading.chunk_invariance, reading.causality, carrying.state_bytes, computing.agrees_with_its_oracle)
    certificate = certify(make, oracle=oracle, laws=LAWS if position == "rope" else some)
    assert certificate.passed, [(check.name, check.detail) for check in certificate.checks if check.passed is False]


@pytest.mark.parametrize("time", [GROUP, 2 * GROUP])
def test_large_groups_are_full_attention(time: int) -> None:
    """One group that holds everything, shifted too: G = 2 N."""
    x, context = inputs(time)
    module = layer(group=2 * time).train()
    full = Full(module.shape, module.position).double()
    full.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x, context).y, full(x, context).y)


def flow(module: Shifted) -> Tensor:
    """Which groups' inputs reach which groups' outputs through two layers, bool ``[group of y, group of x]``."""
    x, context = inputs(4 * GROUP)
    x = x[:1].requires_grad_()
    hidden = x + module(x, Context(context.positions[:1])).y
    y = hidden + module(hidden, Context(context.positions[:1])).y
    rows = [torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in y.split(GROUP, 1)]
    return (
        torch.stack([torch.stack([bool(g.any()) * torch.ones(()) for g in row.split(GROUP, 1)]) for row in rows]) > 0
    )


def test_the_shift_passes_information_from_group_to_group() -> None:
    module = layer(group=GROUP).train()
    reached = flow(module)
    assert reached.diagonal(-1).all()
    assert not reached.triu(1).any()
    with torch.no_grad():  # what the shifted heads read is not read any more
        module.output.weight[:, WIDTH // 2 :] = 0
    assert torch.equal(flow(module), torch.eye(4, dtype=torch.bool))


def changed_by(module: Shifted, t: int, time: int = 4 * GROUP) -> Tensor:
    """Whether each output changes with token ``t``, bool ``[time]``."""
    x, context = inputs(time)
    changed = x.clone()
    changed[:, t] = 10 * x[:, 0]
    with torch.no_grad():
        return (module(x, context).y != module(changed, context).y).any(-1).any(0)


def test_the_published_roll_leaks_and_the_cut_does_not() -> None:
    """With the roll, the first half group reads the end of the sequence."""
    last = 4 * GROUP - 1
    rolled, cut = (changed_by(layer(group=GROUP, form=form).train(), last) for form in ("rolled", "cut"))
    assert rolled[: GROUP // 2].all()
    assert not rolled[GROUP // 2 : last].any()
    assert not cut[:last].any()
    assert not changed_by(layer(group=GROUP, form="rolled").eval(), last)[:last].any()


def test_roll_and_cut_differ_in_the_first_half_group_alone() -> None:
    x, context = inputs(4 * GROUP)
    rolled, cut = (layer(group=GROUP, form=form).train()(x, context).y for form in ("rolled", "cut"))
    torch.testing.assert_close(rolled[:, GROUP // 2 :], cut[:, GROUP // 2 :])
    assert not torch.allclose(rolled[:, : GROUP // 2], cut[:, : GROUP // 2])


def test_the_roll_is_the_algorithm_of_the_paper() -> None:
    """Algorithm 1, line by line: roll, group, attend, roll back; positions are true ones."""
    x, context = inputs(4 * GROUP)
    module = layer(group=GROUP, form="rolled").train()
    q, k, v = (module.split(project(x)) for project in (module.q, module.k, module.v))
    q, k = module.position.rotate(q, k, context.positions, context.positions)
    qkv = torch.stack([tensor.transpose(1, 2) for tensor in (q, k, v)], 2)  # [batch, time, 3, heads, head_dim]
    qkv = torch.cat([part.roll(-shift, 1) for part, shift in zip(qkv.chunk(2, 3), (0, GROUP // 2), strict=True)], 3)
    q, k, v = qkv.reshape(-1, GROUP, 3, HEADS, WIDTH // HEADS).transpose(1, 3).unbind(2)
    o = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    o = o.reshape(2, 4 * GROUP, HEADS, -1)
    o = torch.cat([part.roll(shift, 1) for part, shift in zip(o.chunk(2, 2), (0, GROUP // 2), strict=True)], 2)
    torch.testing.assert_close(module(x, context).y, module.output(o.flatten(2)))


def test_groups_are_a_quarter_of_what_is_trained_on() -> None:
    config = lcbench.compose(["attention=shifted", "task.length=100"]).config
    assert config["attention"]["length"] == 100
    assert Shifted(LayerShape(WIDTH, HEADS), layer().position, length=100).group == 26
    assert Shifted(LayerShape(WIDTH, HEADS), layer().position, length=4096).group == 1024
    assert layer(group="1k").group == 1000


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"attention\.group=7 .*attention\.group=8"):
        layer(group=7)
    with pytest.raises(ConfigurationError, match=r"model\.n_heads=3"):
        lcbench.build_attention("shifted", d_model=12, n_heads=3)
    with pytest.raises(ConfigurationError, match="Alibi knows no keys after the query"):
        layer("alibi", form="rolled")
    module = layer(group=GROUP, form="rolled").train()
    x, context = inputs(GROUP + 1)
    for told in (context, dataclasses.replace(context, documents=torch.zeros_like(context.positions))):
        with pytest.raises(ConfigurationError, match=rf"multiples of attention\.group={GROUP}"):
            module(x, told)
