"""Identities of dilated attention that its definition implies, and the mistakes that published code makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lcbench
from lcbench.attention import dilated
from lcbench.attention.base import Attention, Context
from lcbench.attention.dilated import Dilated, DilatedState, Group
from lcbench.conformance import find_oracle
from lcbench.errors import ConfigurationError

WIDTH, HEADS, TIME = 16, 4, 40


def layer(segments: list[int], dilations: list[int], position: Any = "none", **options: Any) -> Attention:
    torch.manual_seed(0)
    options = {"segments": segments, "dilations": dilations, **options}
    return lcbench.build_attention("dilated", d_model=WIDTH, n_heads=HEADS, position=position, **options).double()


def inputs(time: int = TIME, batch: int = 2) -> tuple[Tensor, Context]:
    x = torch.randn(batch, time, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, Context(positions=torch.arange(time).repeat(batch, 1))


def gradients(module: Attention, x: Tensor, context: Context) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = module(x, context).y
    weight = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [x, *parameters], materialize_grads=True)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_copies_of_a_pattern_change_nothing() -> None:
    x, context = inputs()
    assert_same(gradients(layer([12, 12, 12], [3, 3, 3]), x, context), gradients(layer([12], [3]), x, context))


def test_one_undilated_pattern_is_block_diagonal() -> None:
    """The first token of a segment sees itself alone."""
    x, context = inputs()
    module = layer([10], [1])
    alone = torch.cat([module(part, Context(torch.arange(10).repeat(2, 1))).y for part in x.split(10, 1)], 1)
    torch.testing.assert_close(module(x, context).y, alone)


@pytest.mark.parametrize("position", ["none", "rope", "alibi", "t5", "relative", "transformer_xl", "cope_rope"])
def test_paths_agree(position: str) -> None:
    """Consecutive tokens, whatever an encoding adds, give what a call gives that is told nothing of their places."""
    x, context = inputs()
    module = layer([8, 16, 40], [1, 4, 6], position)
    told = dataclasses.replace(context, consecutive=False)
    assert_same(gradients(module, x, context), gradients(module, x, told))


def test_detaching_the_mixture_changes_gradients_and_nothing_else() -> None:
    x, context = inputs()
    (y, *learned), (y_detached, *constant) = (
        gradients(layer([8, 40], [1, 2], detach_mixture=detach), x, context) for detach in (False, True)
    )
    torch.testing.assert_close(y, y_detached)
    changed = (learned[1] - constant[1]).norm() / learned[1].norm()  # of the map into queries
    assert changed > 0.01


def test_tokens_that_no_pattern_keeps_read_nothing() -> None:
    """Without an undilated pattern a head reads for its own residues only, and a token in none of them gets 0."""
    x, context = inputs()
    module = layer([40], [6])  # offsets 0 to 3: residues 4 and 5 are nobody's
    torch.testing.assert_close(module.output.bias.expand(2, -1), module(x, context).y[:, 4])
    found = gradients(module, x, context)
    assert all(bool(tensor.isfinite().all()) for tensor in found)
    # a token that is only ever a key of nobody gets no gradient
    assert not found[1][:, 4::6].any()
    assert found[1][:, 0].any()


def test_heads_together_keep_every_position_if_the_dilation_divides_their_number() -> None:
    for r in (1, 2, 4):
        groups = [Group(0, 14, r, offset, HEADS) for offset in range(min(r, HEADS))]
        assert all(any(group.keeps(p) for group in groups) for p in range(100))
        assert sum(group.width for group in groups) == HEADS


@pytest.mark.parametrize("until", [0, 1, 13, 14, 15, 100])
def test_kept_positions_are_counted(until: int) -> None:
    for r in (1, 3, 4, 14):
        for offset in range(min(r, HEADS)):
            group = Group(0, 14, r, offset, HEADS)
            assert group.count(until) == sum(bool(group.keeps(p)) for p in range(until))


def test_without_gradients_a_long_sequence_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last piece is shorter, pieces end inside segments, and reading starts inside one."""
    x, context = inputs()
    module = layer([8, 12, 64], [1, 3, 4], "rope")
    first = module(x[:, :5], context.map(lambda t: t[:, :5])).state
    rest = context.map(lambda t: t[:, 5:])
    whole = module(x[:, 5:], rest, first)
    monkeypatch.setattr(dilated, "_PIECE", 6)
    monkeypatch.setattr(dilated, "_PLACES", 16)
    with torch.no_grad():
        pieces = module(x[:, 5:], rest, first)
    torch.testing.assert_close(pieces.y, whole.y)
    for ours, theirs in zip(pieces.state.groups, whole.state.groups, strict=True):
        torch.testing.assert_close(ours.k, theirs.k)
        assert torch.equal(ours.positions, theirs.positions)


def test_the_state_stops_growing() -> None:
    """Of every pattern w / r keys less one, in each head."""
    module = layer([8, 32], [1, 4])
    assert isinstance(module, Dilated)
    numbers = 2 * WIDTH * (8 - 1 + 32 // 4 - 1) * 4
    positions = 8 * (8 - 1 + 4 * (32 // 4 - 1))
    assert (
        module.state_bytes(1, 100, torch.float32) == module.state_bytes(1, 10**9, torch.float32) == numbers + positions
    )


@pytest.mark.parametrize("position", ["none", "rope"])
@pytest.mark.parametrize("time", [32, 37])
@pytest.mark.parametrize("split", [None, 9])
def test_reading_both_ways(position: str, time: int, split: int | None) -> None:
    """In lengths that segments and dilations do not divide, too; after a state, tokens see what was read before."""
    segments, dilations = [8, 20], [1, 3]
    module = layer(segments, dilations, position)
    x, context = inputs(time, 1)
    weights, encoding = dict(module.named_parameters()), find_oracle(position)

    def row(i: int, q: Tensor, k: Tensor, v: Tensor, head: int, x: Tensor, positions: Tensor) -> Tensor:
        options = {} if position == "none" else {"base": 10000.0, "pairing": "interleaved", "channels": None}
        return encoding.row(i, q, k, v, x, positions, {}, head=head, n_heads=HEADS, **options)

    sizes = {"row": row, "n_heads": HEADS, "segments": segments, "dilations": dilations, "detach_mixture": False}
    together = dataclasses.replace(context, together=True)
    if split is None:
        expected, _ = find_oracle("dilated").together(x[0], weights, context.positions[0], None, **sizes)
        for told in (together, dataclasses.replace(together, consecutive=False)):
            torch.testing.assert_close(module(x, told).y[0], expected)
        return
    # the tokens up to the split were read without what came later: keys are the same
    before = module(x[:, :split], context.map(lambda t: t[:, :split])).state
    after = [
        module(x[:, split:], dataclasses.replace(together.map(lambda t: t[:, split:]), consecutive=kind), before).y
        for kind in (True, False)
    ]
    expected, _ = find_oracle("dilated").together(x[0], weights, context.positions[0], None, **sizes)
    for y in after:
        torch.testing.assert_close(y[0], expected[split:])


def test_an_irregular_call_can_follow_a_regular_one_and_the_other_way_round() -> None:
    x, context = inputs()
    module = layer([8, 12], [1, 3], "rope")
    whole = module(x, context).y
    padded = dataclasses.replace(context, padding=torch.zeros_like(context.positions, dtype=torch.bool))
    for first, second in ((context, padded), (padded, context)):
        early = module(x[:, :17], first.map(lambda t: t[:, :17]))
        late = module(x[:, 17:], second.map(lambda t: t[:, 17:]), early.state)
        assert isinstance(early.state, DilatedState)
        torch.testing.assert_close(torch.cat([early.y, late.y], 1), whole)


@torch.no_grad()
def changes_before(read: Callable[[Tensor], Tensor], x: Tensor, t: int) -> float:
    """How much the outputs before token ``t`` change with it."""
    changed = x.clone()
    changed[:, t] = 10 * x[:, 0]
    return float((read(changed) - read(x))[:, :t].abs().max())


def test_the_ports_normaliser_leaks_and_the_mixture_does_not() -> None:
    """A widespread port gives each pattern some of the heads, and divides what they read by its sum over the whole
    sequence: every output depends on all later ones."""
    x, context = inputs()
    module = layer([8, 16], [1, 2])

    def port(x: Tensor) -> Tensor:
        q, k, v = (module.split(project(x)) for project in (module.q, module.k, module.v))
        o = torch.zeros_like(q)
        for heads, (w, r) in zip((slice(0, 2), slice(2, 4)), ((8, 1), (16, 2)), strict=True):
            for start in range(0, x.shape[1], w):
                kept = slice(start, start + w, r)
                some = (tensor[:, heads, kept] for tensor in (q, k, v))
                o[:, heads, kept] = torch.nn.functional.scaled_dot_product_attention(*some, is_causal=True)
        return module.merge(o / o.sum((2, 3), keepdim=True))

    assert changes_before(port, x, 30) > 1e-3
    assert changes_before(lambda x: module(x, context).y, x, 30) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": [8, 16], "dilations": [1]}, "must name a length and a dilation for every pattern"),
        ({"segments": [], "dilations": []}, "must name a length"),
        ({"segments": [0], "dilations": [1]}, "0 holds nothing"),
        ({"segments": [8], "dilations": [9]}, "the closest is 8"),
        ({"segments": [8], "dilations": [0]}, "the closest is 1"),
        ({"segments": 8, "dilations": [1]}, "attention.segments=8|segments=8"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        layer(**options)


def test_segments_may_be_written_as_lengths() -> None:
    module = layer(["1k", "4k"], [1, 4])  # type: ignore[list-item]
    assert module.segment == 4000
