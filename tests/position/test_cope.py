from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lcbench.attention.reach import Window
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape
from lcbench.position.cope import Cope, _Counted
from lcbench.position.cope_relative import CopeRelative
from lcbench.position.cope_rope import CopeRope
from lcbench.position.none import NoPosition
from lcbench.position.relative import Relative
from tests.position.harness import SHAPE, attention, build, consecutive, distance, draw

TIME = 9
HIDDEN = torch.finfo(torch.float64).min


def positions(gates: Tensor, p_max: int) -> Tensor:
    """p_ij of ``gates`` ``[q_time, k_time]``: read off a table whose row p is the number p."""
    t = torch.logit(gates.double()).clamp(min=HIDDEN)
    return counted_bias(t, torch.arange(p_max).double())


def counted_bias(t: Tensor, z: Tensor) -> Tensor:
    """b of gates ``sigmoid(t)`` ``[q_time, k_time]`` where every query has the logits ``z`` ``[P]``."""
    return _Counted.apply(t, t.new_ones(len(t), 1), z[:, None])


def test_p_max_is_one_more_than_the_context_unless_given() -> None:
    assert Cope(SHAPE, context=12).p_max == 13
    made = Cope(SHAPE, context=12, p_max=4)
    assert made.p_max == 4
    assert made.table.shape == (4, SHAPE.head_dim)
    assert not bool(made.table.any())
    assert CopeRope(SHAPE, context=12).p_max == CopeRelative(SHAPE, context=12).p_max == 13
    with pytest.raises(ConfigurationError, match=r"position.p_max"):
        Cope(SHAPE)
    with pytest.raises(ConfigurationError, match=r"position.p_max=0"):
        Cope(SHAPE, p_max=0)


def test_the_parameters_of_the_papers_language_model() -> None:
    layers = [Cope(LayerShape(768, 12, layer), p_max=64) for layer in range(12)]
    assert sum(p.numel() for layer in layers for p in layer.parameters()) == 12 * 64 * 64


def test_separators_are_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    separators = torch.rand(12, generator=generator) < 0.4
    counted = positions((separators * torch.ones(12, 12).tril()), 13)
    for i in range(12):
        for j in range(i + 1):
            assert float(counted[i, j]) == sum(separators[j : i + 1])


def test_positions_fall_by_the_gate_and_stop_at_the_table() -> None:
    gates = torch.rand(6, 9, dtype=torch.float64)
    free, short = positions(gates, 20), positions(gates, 3)
    assert distance(free[:, :-1] - free[:, 1:], gates[:, :-1]) < 1e-12
    assert distance(free[:, -1], gates[:, -1]) < 1e-12
    assert distance(short, free.clamp(max=2)) < 1e-12


def test_many_counted_keys_stay_precise_in_float32() -> None:
    gates = torch.rand(1, 4096, dtype=torch.float64)
    exact = gates.flip(-1).cumsum(-1).flip(-1)
    t = torch.logit(gates).float()
    counted = counted_bias(t, torch.arange(4097.0))
    assert distance(counted, exact) < 2e-3
    assert float(counted.min()) >= 0


def test_without_a_learned_table_it_is_no_encoding() -> None:
    tensors, context = draw(TIME), consecutive(TIME)
    made = Cope(SHAPE, context=TIME).double()
    assert distance(attention(made, tensors, context), attention(NoPosition(SHAPE), tensors, context)) < 1e-12


def test_open_gates_make_it_relative() -> None:
    tensors, context = draw(TIME), consecutive(TIME)
    cope = build(Cope, {"p_max": TIME + 1, "gates": "separate_keys"})
    relative = build(Relative, {"context": TIME})
    with torch.no_grad():
        # keys that agree with every query: q has a constant channel
        tensors[0][..., 0] = 1.0
        cope.gate_keys.weight.zero_()
        cope.gate_keys.bias.zero_()
        cope.gate_keys.bias.view(SHAPE.n_heads, -1)[:, 0] = 1e4
        relative.table.copy_(cope.table[1:])
    assert distance(attention(cope, tensors, context), attention(relative, tensors, context)) < 1e-12
    with torch.no_grad():
        cope.gate_keys.bias.view(SHAPE.n_heads, -1)[:, 0] = -1e4
    assert distance(attention(cope, tensors, context), attention(NoPosition(SHAPE), tensors, context)) < 1e-12


def test_rows_beyond_reach_do_not_matter() -> None:
    tensors, context = draw(TIME), consecutive(TIME)
    large, exact = build(Cope, {"p_max": 40}), build(Cope, {"p_max": TIME + 1})
    with torch.no_grad():
        exact.table.copy_(large.table[: TIME + 1])
    assert distance(attention(large, tensors, context), attention(exact, tensors, context)) < 1e-12


def test_the_bias_is_continuous_and_piecewise_linear() -> None:
    z = torch.randn(5, dtype=torch.float64)
    p = torch.linspace(0.001, 3.999, 1000, dtype=torch.float64)

    def bias(position: Tensor) -> Tensor:
        # whole gates, then the fraction that is left
        gates = torch.stack([(position - k).clamp(0, 1) for k in range(4)], -1).clamp(1e-15, 1 - 1e-15)
        return counted_bias(torch.logit(gates), z)[:, 0]

    expected = torch.lerp(z[p.long()], z[p.long() + 1], p.frac())
    assert distance(bias(p), expected) < 1e-9


def test_a_clamped_position_has_no_gradient() -> None:
    t = torch.zeros(1, 20, dtype=torch.float64, requires_grad=True)
    z = torch.randn(3, dtype=torch.float64)
    counted_bias(t + torch.linspace(0, 0.01, 20), z)[0, :10].sum().backward()
    assert t.grad is not None
    assert not bool(t.grad.any())


def test_what_is_not_a_number_stays_visible() -> None:
    (q, *rest), context = draw(TIME), consecutive(TIME)
    q = q.detach().clone()
    q[0, :, 4] = torch.nan
    q.requires_grad_()
    output = attention(build(Cope, {"context": TIME}), (q, *rest), context)
    assert torch.equal(output.isnan().any(-1), q.isnan().any(-1))
    output.sum().backward()


def test_gates_of_hidden_keys_stay_shut() -> None:
    """Changing what a query must not see changes neither its output nor any gradient that reaches it."""
    made, (q, k, v, x), context = build(Cope, {"context": TIME}), draw(TIME), consecutive(TIME)
    inputs = (q, k, v)
    before = torch.autograd.grad(attention(made, (q, k, v, x), context)[:, :, 4].sum(), inputs)
    assert all(not bool(gradient[:, :, 5:].any()) for gradient in before)
    window = attention(made, (q, k, v, x), context, reach=Window(3))
    assert distance(window[:, :, 2], attention(made, (q, k, v, x), context)[:, :, 2]) < 1e-12
    tail = [tensor[:, :, 4:7] for tensor in (q, k, v)]
    alone = attention(made, (*tail, x[:, 4:7]), consecutive(3))
    assert distance(window[:, :, 6], alone[:, :, 2]) < 1e-12


def test_the_scales_of_gates_and_bias_are_choices() -> None:
    tensors, context = draw(TIME), consecutive(TIME)
    outputs = [
        attention(build(Cope, {"p_max": 5, "scaled_gates": gates, "scaled_bias": bias}), tensors, context)
        for gates in (True, False)
        for bias in (True, False)
    ]
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert distance(a, b) > 1e-3


@pytest.mark.parametrize("encoding", [Cope, CopeRope])
def test_layers_may_share_the_table(encoding: type[Cope]) -> None:
    first, second = encoding(SHAPE, context=4, shared=True), encoding(SHAPE, context=4, shared=True)
    second.share(first)
    assert all(own is given for own, given in zip(second.parameters(), first.parameters(), strict=True))


@pytest.mark.parametrize(("every", "counting"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3]), (3, [2])])
def test_every_kth_layer_counts(every: int, counting: list[int]) -> None:
    layers = [CopeRelative(replace(SHAPE, layer=layer), context=6, every=every) for layer in range(5)]
    assert [layer.shape.layer for layer in layers if layer.cope is not None] == counting
    assert {layer.p_max for layer in layers} == {7}
    tensors, context = draw(TIME), consecutive(TIME)
    if every > 1:
        assert [*dict(layers[0].named_parameters())] == ["relative.table"]
        mixed, relative = build(CopeRelative, {"context": 6, "every": every}), build(Relative, {"context": 6})
        assert distance(attention(mixed, tensors, context), attention(relative, tensors, context)) < 1e-12
    with pytest.raises(ConfigurationError, match=r"position.every=0"):
        CopeRelative(SHAPE, context=6, every=0)
