from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import lcbench
from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.bigbird import BigBird, Plan
from lcbench.attention.reach import Segment
from lcbench.attention.scoring import attend
from lcbench.conformance import LAWS, certify
from lcbench.errors import ConfigurationError
from tests.position.harness import consecutive, distance

LENGTH = 64
CAUSALITY = tuple(law for law in LAWS if law.__name__ == "causality")


def plan_of(**options: Any) -> Plan:
    chosen = {"window": 3, "random": 3, "global_blocks": 2, "draw": "uniform", "seed": 0, "layer": 0, "n_heads": 4}
    return Plan(**chosen | options)  # type: ignore[arg-type]


def layer_of(position: Any = "rope", **options: Any) -> BigBird:
    torch.manual_seed(0)
    layer = lcbench.build_attention("bigbird", d_model=16, n_heads=2, position=position, **options)
    assert isinstance(layer, BigBird)
    return layer


def inputs() -> torch.Tensor:
    return torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def read_by(plan: Plan, j: int, head: int) -> list[int]:
    """Blocks that block ``j`` reads in the causal form, with repetitions if there were any."""
    near = list(range(max(0, j - plan.window + 1), j + 1))
    everywhere = [c for c in range(plan.global_blocks) if c < j - plan.window + 1]
    drawn = plan.random_blocks(np.array([j]), None)[0, head]
    return near + everywhere + drawn[drawn >= 0].tolist()


@pytest.mark.parametrize("total", [None, 40])
def test_random_blocks_are_distinct_and_outside_window_and_global_blocks(total: int | None) -> None:
    plan, j = plan_of(), np.arange(40)
    blocks = plan.random_blocks(j, None if total is None else np.full(40, total))
    assert blocks.shape == (40, 4, 3)
    for number in j:
        for head in range(4):
            drawn = blocks[number, head][blocks[number, head] >= 0].tolist()
            assert len(set(drawn)) == len(drawn)
            if total is None:
                assert len(drawn) == max(0, min(3, number - 3 + 1 - 2))
                assert all(2 <= c <= number - 3 for c in drawn)
            elif 1 < number < 38:
                assert len(drawn) == 3
                assert all(0 < c < total - 1 and abs(c - number) > 1 for c in drawn)


def test_away_from_the_borders_a_query_reads_so_many_distinct_blocks() -> None:
    plan = plan_of()
    for j in range(8, 40):
        blocks = read_by(plan, j, 0)
        assert len(blocks) == len(set(blocks)) == 2 + 3 + 3


def test_the_draw_depends_on_seed_layer_head_and_block_and_on_nothing_else() -> None:
    j = np.arange(100, 140)
    blocks = plan_of().random_blocks(j, None)
    assert (blocks == plan_of().random_blocks(j, None)).all()
    assert (blocks[7:9] == plan_of().random_blocks(j[7:9], None)).all()
    for other in (plan_of(seed=1), plan_of(layer=1)):
        assert (other.random_blocks(j, None) != blocks).any(axis=(1, 2)).all()
    assert (blocks[:, 0] != blocks[:, 1]).any(axis=1).all()


def test_the_draw_is_pinned() -> None:
    """A trained model's random blocks are part of it: they must not move with a version."""
    blocks = plan_of(n_heads=1).random_blocks(np.array([5, 50, 5000]), None)[:, 0]
    assert blocks.tolist() == [[2, -1, -1], [31, 20, 10], [302, 9, 3372]]


@pytest.mark.parametrize("total", [None, 16])
def test_uniform_draws_are_uniform(total: int | None) -> None:
    """Block 12 of many heads: each candidate is drawn equally often, to four standard deviations."""
    heads = 4000
    drawn = plan_of(n_heads=heads).random_blocks(np.array([12]), None if total is None else np.array([total]))[0]
    candidates = list(range(2, 10)) if total is None else [*range(1, 11), 14]
    counts = np.bincount(drawn.ravel(), minlength=16)
    share = 3 / len(candidates)
    assert counts.sum() == counts[candidates].sum() == 3 * heads
    assert (abs(counts[candidates] - share * heads) < 4 * (heads * share * (1 - share)) ** 0.5).all()


def test_early_draws_stay_early() -> None:
    blocks = plan_of(draw="early").random_blocks(np.arange(20, 500), None)
    assert blocks.max() == 2 * 3 + 4
    assert blocks.min() == 2


def layers_to_the_end(plan: Plan, blocks: int) -> int:
    """Layers until what is in the first block that is not global reaches the last."""
    reads = np.zeros((blocks, blocks), bool)
    for j in range(blocks):
        reads[j, [c for head in range(plan.n_heads) for c in read_by(plan, j, head)]] = True
    known, layers = np.arange(blocks) == plan.global_blocks, 0
    while not known[-1]:
        known, layers = (reads & known).any(1), layers + 1
    return layers


def test_random_blocks_shorten_the_way() -> None:
    assert layers_to_the_end(plan_of(random=0), 64) == 31
    assert layers_to_the_end(plan_of(random=3), 64) <= 5


def test_without_random_and_global_blocks_it_is_a_window_of_blocks() -> None:
    layer, x, context = layer_of(block=4, random=0, global_blocks=0).double(), inputs(), consecutive(LENGTH)
    q, keys = layer.project(x, context)
    expected = layer.merge(attend(q, context, keys, layer.position, reach=Segment(4, memory=8)))
    assert distance(layer(x, context).y, expected) < 1e-12


def test_global_blocks_read_everything_and_are_read_by_all_where_it_reads_both_ways() -> None:
    layer, x = layer_of(block=4, random=0, window=1).double(), inputs()
    context = dataclasses.replace(consecutive(LENGTH), together=True)
    for changed, moved in ((30, {7, 0, 15}), (1, set(range(16))), (63, set(range(16)))):
        other = x.clone()
        other[:, changed] += 1
        difference = (layer(other, context).y - layer(x, context).y).abs().amax((0, 2)) > 1e-12
        assert set((difference.nonzero()[:, 0] // 4).tolist()) == moved


def test_tokens_read_both_ways_see_what_was_read_before() -> None:
    """As if all had been read both ways at once."""
    layer, x = layer_of(block=4).double(), inputs()
    first = layer(x[:, :30], consecutive(30))
    second = layer(x[:, 30:], dataclasses.replace(consecutive(LENGTH - 30, start=30), together=True), first.state)
    whole = layer(x, dataclasses.replace(consecutive(LENGTH), together=True))
    assert distance(second.y, whole.y[:, 30:]) < 1e-12


class TwoWayGlobal(BigBird):
    """The paper's global blocks in a causal model: they read everything, so what they say holds the future."""

    def forward(self, x: torch.Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        causal = super().forward(x, context, state)
        free = super().forward(x, dataclasses.replace(context, together=True), state)
        is_global = context.positions < self.plan.global_blocks * self.block
        return AttentionOutput(torch.where(is_global[..., None], free.y, causal.y), causal.state)


def test_two_way_global_blocks_in_a_causal_model_are_caught() -> None:
    def leaking() -> BigBird:
        layer = layer_of(block=3)
        layer.__class__ = TwoWayGlobal
        return layer

    assert certify(leaking, laws=CAUSALITY).failed == ("causality",)
    assert certify(lambda: layer_of(block=3), laws=CAUSALITY).passed


@pytest.mark.parametrize("position", ["cope", "cope_rope", "cope_relative"])
def test_an_encoding_that_counts_keys_is_refused_by_name(position: str) -> None:
    sizes = {"context": 16} if position == "cope_relative" else {"p_max": 16}
    with pytest.raises(ConfigurationError, match=r"position Cope\w* counts all keys .* attention=bigbird"):
        layer_of(position={"name": position, **sizes})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4}, r"attention\.window=4 .* odd.* attention\.window=3\."),
        ({"window": 0}, r"attention\.window=0 .* attention\.window=1\."),
        ({"block": 0}, r"attention\.block=0 .* attention\.block=1\."),
        ({"random": -1}, r"attention\.random=-1 .* attention\.random=0\."),
        ({"global_blocks": -1}, r"attention\.global_blocks=-1 .* attention\.global_blocks=0\."),
    ],
)
def test_sizes_that_are_none_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        layer_of(**options)
