"""What the conformance suite does not ask: cross-batch training, and that the memory has no order."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from lcbench.attention import focused
from lcbench.attention.base import AttentionOutput, Context, CrossBatch, Facts
from lcbench.attention.focused import Focused
from lcbench.errors import ConfigurationError
from lcbench.model.base import place
from lcbench.position.alibi import Alibi
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.position.none import NoPosition
from lcbench.position.rope import Rope
from lcbench.position.t5 import T5
from lcbench.position.transformer_xl import TransformerXL

oracle = importlib.import_module("tests.oracles.focused")

SHAPE = LayerShape(d_model=16, n_heads=2)
#: one row for each; the last reads its own window only
MIXED = (CrossBatch(1, 1), CrossBatch(2, 0), CrossBatch(1, 2), CrossBatch(0, 1), CrossBatch(0, 0))


def made(encoding: type[PositionEncoding] = NoPosition, **options: Any) -> Focused:
    torch.manual_seed(0)
    return Focused(SHAPE, encoding(SHAPE), **{"segment": 4, **options}).double()


def inputs(batch: int, time: int) -> tuple[Tensor, Context]:
    x = torch.randn(batch, time, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.requires_grad_(), Context(positions=torch.arange(time).repeat(batch, 1))


def trained(layer: Focused, x: Tensor, context: Context, *numbers: CrossBatch) -> AttentionOutput:
    asked = numbers if len(numbers) > 1 else numbers * len(x)
    return layer(x, dataclasses.replace(context, crossbatch=tuple(asked)))


@pytest.mark.parametrize("time", [3, 8, 15])
@pytest.mark.parametrize("numbers", [MIXED, (CrossBatch(1, 3),) * 5, (CrossBatch(2, 2),) * 5])
def test_cross_batch_training_is_its_definition(time: int, numbers: tuple[CrossBatch, ...]) -> None:
    layer, (x, context) = made(), inputs(5, time)
    weights = dict(layer.named_parameters())
    y = trained(layer, x, context, *numbers).y
    expected = oracle.crossbatch(x, weights, 2, 4, [(n.n_pos, n.n_neg) for n in numbers])
    assert torch.allclose(y, expected, atol=1e-12)
    loss = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = [x, *weights.values()]
    for ours, theirs in zip(
        torch.autograd.grad((y * loss).sum(), wanted),
        torch.autograd.grad((expected * loss).sum(), wanted),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-11)


@pytest.mark.parametrize(
    ("encoding", "options"), [(NoPosition, {}), (Alibi, {"memory_position": "first", "cache": 3})]
)
def test_few_rows_at_a_time_and_chunks_change_nothing(
    encoding: type[PositionEncoding], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, (x, context) = made(encoding, **options), inputs(5, 18)
    whole = trained(layer, x, context, *MIXED)
    state, outputs = None, []
    for part in (slice(0, 6), slice(6, 7), slice(7, 18)):
        facts = dataclasses.replace(context, positions=context.positions[:, part], crossbatch=MIXED)
        output = layer(x[:, part], facts, state)
        state = output.state
        outputs.append(output.y)
    assert torch.allclose(torch.cat(outputs, 1), whole.y, atol=1e-12)
    (expected,) = torch.autograd.grad(whole.y.square().sum(), x)
    monkeypatch.setattr(focused, "_NUMBERS", 1)
    alone = trained(layer, x, context, *MIXED)
    (gradient,) = torch.autograd.grad(alone.y.square().sum(), x)
    assert torch.allclose(gradient, expected, atol=1e-11)
    assert torch.allclose(alone.y, whole.y, atol=1e-12)
    assert torch.allclose(alone.measures["positive_share"], whole.measures["positive_share"])


@pytest.mark.parametrize("encoding", [NoPosition, Rope, T5])
def test_own_contexts_alone_are_what_evaluation_reads(encoding: type[PositionEncoding]) -> None:
    layer, (x, context) = made(encoding, memory_position="first"), inputs(6, 19)
    plain = trained(layer, x, context, CrossBatch(4, 0)).y
    assert torch.allclose(plain, layer(x, context).y, atol=1e-12)
    window = Context(positions=context.positions[:, 4:8])
    alone = trained(layer, x, context, CrossBatch(0, 0)).y[:, 4:8]
    assert torch.allclose(alone, layer(x[:, 4:8], window).y, atol=1e-12)


def test_gradients_reach_all_contexts_and_nothing_else() -> None:
    layer, (x, context) = made(), inputs(5, 12)
    y = trained(layer, x, context, CrossBatch(1, 2)).y
    (gradient,) = torch.autograd.grad(y[1, 11].sum(), x)  # row 1, third window
    reached = gradient.abs().sum(-1) > 0  # [batch, time]
    expected = torch.zeros(5, 12, dtype=torch.bool)
    expected[1, 4:] = True
    expected[2:4, 4:8] = True
    assert torch.equal(reached, expected)


def test_a_layer_that_cannot_tell_contexts_apart_spreads_its_attention() -> None:
    layer, (x, context) = made(), inputs(5, 12)
    with torch.no_grad():
        layer.q.weight.zero_()
        layer.q.bias.zero_()
    share = trained(layer, x, context, CrossBatch(1, 3)).measures["positive_share"]
    assert torch.allclose(share, torch.tensor(0.25, dtype=torch.float64))
    assert "positive_share" not in trained(layer, x, context, CrossBatch(1, 0)).measures
    assert "positive_share" not in layer(x, context).measures


def test_a_layer_that_knows_its_document_does_not() -> None:
    layer, (x, context) = made(temperature="fixed"), inputs(4, 8)
    with torch.no_grad():
        for projection in (layer.q, layer.k):
            projection.weight.copy_(torch.eye(16))
            projection.bias.zero_()
        x = 50 * torch.nn.functional.one_hot(torch.arange(4), 8).double().repeat(1, 2)[:, None].expand(4, 8, 16)
    share = trained(layer, x, context, CrossBatch(1, 2)).measures["positive_share"]
    assert torch.allclose(share, torch.ones(2, dtype=torch.float64))


def test_too_small_a_batch_is_named() -> None:
    layer, (x, context) = made(), inputs(4, 12)
    with pytest.raises(ConfigurationError, match=r"trainer.batch_size=4 .* the least is trainer.batch_size=5\."):
        trained(layer, x, context, CrossBatch(2, 2))
    with pytest.raises(ConfigurationError, match=r"n_neg=-1"):
        CrossBatch(1, -1)


def test_rows_that_differ_are_refused() -> None:
    layer, (x, context) = made(), inputs(4, 12)
    padded = dataclasses.replace(context, padding=torch.zeros_like(context.positions, dtype=torch.bool))
    with pytest.raises(ConfigurationError, match="without padding"):
        trained(layer, x, padded, CrossBatch(1, 1))
    with pytest.raises(ConfigurationError, match="each of 4 rows"):
        trained(layer, x, context, CrossBatch(1, 1), CrossBatch(1, 1))


def test_a_model_hands_the_numbers_on() -> None:
    numbers = (CrossBatch(1, 1),) * 3
    placed = place(torch.zeros(3, 8, dtype=torch.int64), Facts(crossbatch=numbers), None)
    assert placed.context.crossbatch == numbers


@pytest.mark.parametrize(
    ("encoding", "position"), [(NoPosition, "none"), (Rope, "first"), (Alibi, "first"), (T5, "first")]
)
def test_retrieving_everything_is_reading_everything(encoding: type[PositionEncoding], position: str) -> None:
    x, context = inputs(2, 30)
    layers = [made(encoding, memory_position=position, cache=2, retrieved=count) for count in (None, 1000)]
    everything, best = (layer(x, context) for layer in layers)
    assert torch.allclose(best.y, everything.y, atol=1e-12)
    gradients = [
        torch.autograd.grad(output.y.square().sum(), [x, *layer.parameters()])
        for layer, output in zip(layers, (everything, best), strict=True)
    ]
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*gradients, strict=True))
    assert (best.measures["memory_share"] > 0).all()


@pytest.mark.parametrize("retrieved", [None, 3])
@pytest.mark.parametrize(("encoding", "position"), [(NoPosition, "none"), (Rope, "first"), (Alibi, "first")])
def test_the_order_in_memory_does_not_matter(
    encoding: type[PositionEncoding], position: str, retrieved: int | None
) -> None:
    layer = made(encoding, memory_position=position, retrieved=retrieved)
    x, context = inputs(2, 23)
    state = layer(x[:, :20], Context(positions=context.positions[:, :20])).state
    order = torch.randperm(20)
    shuffled = dataclasses.replace(state, k=state.k[:, :, order], v=state.v[:, :, order])
    rest = Context(positions=context.positions[:, 20:])
    a, b = (layer(x[:, 20:], rest, s).y for s in (state, shuffled))
    assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(
    ("encoding", "options", "said"),
    [
        (TransformerXL, {"memory_position": "first"}, "attention.memory_position=none"),
        (NoPosition, {"retrieved": 0}, "null reads everything"),
        (NoPosition, {"cache": -1}, "attention.cache=0"),
        (NoPosition, {"memory_layers": [1]}, "the closest is 0"),
        (NoPosition, {"initial_scale": 0.0}, "such as 10"),
    ],
)
def test_what_cannot_work_is_refused(encoding: type[PositionEncoding], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        made(encoding, **options)


def test_a_memory_layer_without_positions_has_no_encoding() -> None:
    shapes = [LayerShape(16, 2, layer=layer, n_layers=2) for layer in range(2)]
    local, memory = (Focused(shape, T5(shape)) for shape in shapes)
    assert isinstance(local.position, T5)
    assert isinstance(memory.position, NoPosition)
