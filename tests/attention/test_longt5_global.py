from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import lcbench
from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues
from lcbench.attention.longt5_global import LongT5Global, NearAndSummaries, Sums, TransientState
from lcbench.conformance import LAWS, certify, oracle_of
from lcbench.errors import ConfigurationError
from lcbench.model.decoder import Decoder
from lcbench.position.base import LayerShape
from lcbench.position.t5 import T5
from tests.position.harness import consecutive, distance

LENGTH = 24


def layer_of(position: Any = "rope", **options: Any) -> LongT5Global:
    torch.manual_seed(0)
    layer = lcbench.build_attention("longt5_global", d_model=16, n_heads=2, position=position, **options)
    assert isinstance(layer, LongT5Global)
    return layer


def laws(*names: str) -> tuple[Any, ...]:
    return tuple(law for law in LAWS if law.__name__ in names)


def inputs(length: int = LENGTH) -> torch.Tensor:
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def both_ways(length: int, start: int = 0) -> Context:
    return dataclasses.replace(consecutive(length, start=start), together=True)


def moved(layer: LongT5Global, context: Context, changed: int) -> list[int]:
    """Tokens whose output depends on token ``changed``."""
    x = inputs(context.positions.shape[1])
    other = x.clone()
    other[:, changed] += 1
    difference = (layer(other, context).y - layer(x, context).y).abs().amax((0, 2)) > 1e-12
    return difference.nonzero()[:, 0].tolist()


def test_in_an_encoder_with_t5s_two_tables() -> None:
    options = {"radius": 3, "block": 4, "scaled": False}
    position = {"buckets": 8, "max_distance": 20, "two_sided": True, "shared": True}
    given = {"n_heads": 2, "attention_options": options, "position_options": position}
    certificate = certify(
        lambda: layer_of({"name": "t5", **position}, **options),
        laws=laws("agrees_with_its_oracle", "agrees_with_its_oracle_both_ways"),
        oracle=oracle_of("longt5_global", "t5", **given),  # type: ignore[arg-type]
        oracle_together=oracle_of("longt5_global", "t5", together=True, **given),  # type: ignore[arg-type]
    )
    assert all(check.passed for check in certificate.checks), certificate.checks


def test_the_causal_form_reads_finished_blocks_only() -> None:
    layer = layer_of(radius=0, block=4).double()
    for changed in range(LENGTH):
        first = 4 * (changed // 4 + 1)
        assert moved(layer, consecutive(LENGTH), changed) == [changed, *range(first, LENGTH)]


class OwnBlock(NearAndSummaries):
    """Summaries of the own block are read too: they hold its later tokens."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.alike, self.q_block = False, self.q_block + 1


class Unfinished(LongT5Global):
    """Keeps the summary of the last block as if it were finished."""

    def _finished(self, x: torch.Tensor, sums: Sums, earlier: KeyValues | None) -> KeyValues:
        assert sums.document is None
        return self._joined(earlier, self._keys(x, sums.total, sums.number, None, None))


def test_a_summary_of_the_own_block_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking() -> LongT5Global:
        layer = layer_of(radius=2, block=4).double()
        layer.__class__ = Unfinished
        return layer

    ours = moved(layer_of(radius=2, block=4).double(), consecutive(LENGTH), 6)
    monkeypatch.setattr("lcbench.attention.longt5_global.NearAndSummaries", OwnBlock)
    leaks = moved(leaking(), consecutive(LENGTH), 6)
    assert min(ours) == 6
    assert min(leaks) == 4


def test_the_causality_law_catches_a_summary_of_the_own_block(monkeypatch: pytest.MonkeyPatch) -> None:
    law = laws("causality")
    assert certify(lambda: layer_of(radius=2, block=4), laws=law).passed
    monkeypatch.setattr("lcbench.attention.longt5_global.NearAndSummaries", OwnBlock)
    assert certify(lambda: layer_of(radius=2, block=4), laws=law).failed == ("causality",)


@pytest.mark.parametrize(("length", "blocks"), [(16, 4), (18, 4), (3, 0)])
def test_read_both_ways_left_over_tokens_join_the_last_complete_block(length: int, blocks: int) -> None:
    layer, x = layer_of(radius=0, block=4).double(), inputs(length)
    sums = [x[:, 4 * b : 4 * b + 4].sum(1) for b in range(blocks)]
    if blocks:
        sums[-1] = x[:, 4 * (blocks - 1) :].sum(1)
        found, _ = layer._all(x, both_ways(length), layer._sums(x, both_ways(length), None, False), None)
        g = torch.stack(sums, 1)
        g = g / (g.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.summary_norm.weight
        assert distance(found.k, layer.split(layer.k(g))) < 1e-12
        assert found.positions[0].tolist() == [4 * b + 3 for b in range(blocks)]
    everyone = list(range(length)) if blocks else [length - 1]
    assert moved(layer, both_ways(length), length - 1) == everyone


def test_with_blocks_of_one_and_no_radius_a_token_reads_itself_and_normalised_copies_of_all() -> None:
    layer, x = layer_of("none", radius=0, block=1, scaled=True).double(), inputs()
    copies = torch.nn.functional.rms_norm(x, (16,), layer.summary_norm.weight, 1e-6)
    q, k, v = (layer.split(m(x)) for m in (layer.q, layer.k, layer.v))
    k_g, v_g = layer.split(layer.k(copies)), layer.split(layer.v(copies))
    scores = torch.cat([(q * k).sum(-1, keepdim=True), q @ k_g.transpose(-1, -2)], -1) / 8**0.5
    weights = scores.softmax(-1)
    expected = layer.merge(weights[..., :1] * v + weights[..., 1:] @ v_g)
    assert distance(layer(x, both_ways(LENGTH)).y, expected) < 1e-12


def test_tokens_read_both_ways_see_what_was_read_before() -> None:
    """As if all had been read both ways at once, where the call's last block is complete."""
    layer, x = layer_of(radius=5, block=4).double(), inputs()
    first = layer(x[:, :10], consecutive(10))
    second = layer(x[:, 10:], both_ways(LENGTH - 10, start=10), first.state)
    assert distance(second.y, layer(x, both_ways(LENGTH)).y[:, 10:]) < 1e-12


def test_left_over_tokens_without_a_complete_block_in_the_call_are_read_locally() -> None:
    layer, x = layer_of(radius=0, block=4).double(), inputs(14)
    state = layer(x[:, :13], consecutive(13)).state
    changed = x.clone()
    changed[:, 12] += 1
    other = layer(changed[:, :13], consecutive(13)).state
    y, y_changed = (layer(x[:, 13:], both_ways(1, start=13), s).y for s in (state, other))
    assert torch.equal(y, y_changed)


def test_the_state_is_what_the_paper_needs() -> None:
    layer = layer_of(radius=5, block=4)
    state = layer(inputs(23).float(), consecutive(23)).state
    assert isinstance(state, TransientState)
    assert (state.local.length, state.blocks.length, state.total.shape) == (5, 5, (2, 16))
    assert state.total.dtype == torch.float32


def test_layers_share_the_table_of_blocks_as_they_share_t5s() -> None:
    def tables(shared: bool) -> list[torch.nn.Parameter]:
        model = Decoder(
            10,
            lambda shape, position: LongT5Global(shape, position, radius=3, block=4),
            lambda shape: T5(shape, shared=shared),
            d_model=16,
            n_heads=2,
        )
        found = []
        for attention in model.attentions:
            assert isinstance(attention, LongT5Global)
            assert attention.of_blocks is not None
            assert attention.position.table is not attention.of_blocks.table
            found.append(attention.of_blocks.table)
        return found

    first, second = tables(True)
    assert first is second
    first, second = tables(False)
    assert first is not second


def test_only_t5_has_a_table_of_blocks() -> None:
    assert layer_of().of_blocks is None
    assert LongT5Global(LayerShape(16, 2), T5(LayerShape(16, 2), buckets=8)).of_blocks is not None


@pytest.mark.parametrize("position", ["cope", "cope_rope"])
def test_an_encoding_that_counts_keys_is_refused_by_name(position: str) -> None:
    with pytest.raises(ConfigurationError, match=r"position Cope\w* counts all keys .* attention=longt5_global"):
        layer_of({"name": position, "p_max": 16})


def test_a_block_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"attention\.block=0 .* attention\.block=1\."):
        layer_of(block=0)
