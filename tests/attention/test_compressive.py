from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lcbench
from lcbench.attention.base import Attention, Context
from lcbench.attention.compressive import Compressive
from lcbench.conformance import LAWS, certify, oracle_of
from lcbench.errors import ConfigurationError
from tests.position.harness import consecutive, distance

LENGTH = 41
#: complete, as an oracle needs them
DEFAULTS: dict[str, Any] = {
    "segment": 4,
    "memory": 4,
    "compressed_memory": 4,
    "rate": 2,
    "compression": "conv",
    "reconstruction": "attention",
}


def layer_of(position: str | dict[str, Any] = "none", **options: Any) -> Compressive:
    torch.manual_seed(0)
    made = lcbench.build_attention("compressive", d_model=16, n_heads=2, position=position, **{**DEFAULTS, **options})
    assert isinstance(made, Compressive)
    return made


def inputs(batch: int = 2, time: int = LENGTH) -> Tensor:
    return torch.randn(batch, time, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    "options", [{"compression": "max", "compressed_memory": 3}, {"reconstruction": "auto_encoding"}]
)
def test_the_other_variants_agree_with_the_definition(options: dict[str, Any]) -> None:
    complete = {**DEFAULTS, **options}
    certificate = certify(
        lambda: layer_of(**options),
        laws=tuple(law for law in LAWS if law.__name__ in ("agrees_with_its_oracle", "chunk_invariance")),
        oracle=oracle_of("compressive", "none", n_heads=2, attention_options=complete, position_options={}),
    )
    assert certificate.passed, [(check.name, check.detail) for check in certificate.checks if check.passed is False]


@pytest.mark.parametrize(
    ("options", "memory"),
    [
        ({"compressed_memory": 0, "memory": 8}, 8),
        ({"rate": 1, "compression": "mean", "compressed_memory": 6}, 10),
        ({"rate": 1, "compression": "most_used", "compressed_memory": 6}, 10),
    ],
    ids=["no slots", "rate 1", "all are used"],
)
@pytest.mark.parametrize("position", ["none", "rope", "transformer_xl"])
def test_what_compresses_nothing_is_transformer_xl(position: str, options: dict[str, Any], memory: int) -> None:
    ours = layer_of(position, **options).double()
    xl = lcbench.build_attention("transformer_xl", d_model=16, n_heads=2, position=position, segment=4, memory=memory)
    xl = xl.double()
    assert not xl.load_state_dict(ours.state_dict(), strict=False).missing_keys
    x, context = inputs(), consecutive(LENGTH)
    assert distance(ours(x, context).y, xl(x, context).y) < 1e-12


def test_slots_fill_one_window_after_the_other() -> None:
    layer = layer_of(compressed_memory=5).double()
    x = inputs()
    for time in (1, 3, 4, 7, 8, 11, 12, 15, 16, 17, 40, 41):
        state = layer(x[:, :time], consecutive(time)).state
        assert state is not None
        # the first segment that is full has nothing in memory
        evicted = max(0, time // 4 - 1)
        assert state.kept.sum(1).tolist() == [min(5, 2 * evicted)] * 2


@pytest.mark.parametrize("reconstruction", ["attention", "auto_encoding"])
def test_the_reconstruction_loss_teaches_the_compressor_alone(reconstruction: str) -> None:
    layer = layer_of("transformer_xl", reconstruction=reconstruction).double()
    x = inputs().requires_grad_()
    loss = layer(x, consecutive(LENGTH)).losses["compressive_reconstruction"]
    loss.backward()
    reached = {name for name, p in layer.named_parameters() if p.grad is not None and bool(p.grad.any())}
    apart = {"compressor.map.weight", "compressor.map.bias"}
    if reconstruction == "auto_encoding":
        apart |= {"reconstruction.decoder.weight", "reconstruction.decoder.bias"}
    assert reached == apart
    assert x.grad is None or not x.grad.any()
    assert all(parameter.requires_grad for parameter in layer.parameters())


def test_fed_a_segment_a_call_the_task_teaches_the_compressor_nothing() -> None:
    layer = layer_of().double()
    x, state, total = inputs(time=40), None, torch.zeros((), dtype=torch.float64)
    for start in range(0, 40, 4):
        output = layer(x[:, start : start + 4], consecutive(4, start=start), state)
        state = output.state.detach() if output.state is not None else None
        total = total + output.y.square().sum()
    gradients = torch.autograd.grad(total, [*layer.compressor.parameters()], allow_unused=True, materialize_grads=True)
    assert not any(bool(gradient.any()) for gradient in gradients)


def test_the_engine_finds_segments_to_cut_at() -> None:
    assert layer_of(segment=8, memory=8).segment == 8
    assert lcbench.build_attention("transformer_xl", d_model=16, n_heads=2, segment=8).segment == 8


def test_the_loss_adds_up_over_calls() -> None:
    """Each call tells the mean over its own evictions; a window counts once, in the call in which it leaves."""
    layer = layer_of().double()
    x = inputs()
    whole = layer(x, consecutive(LENGTH)).losses["compressive_reconstruction"]
    evictions, total, state = 0, 0.0, None
    for start, stop in ((0, 7), (7, 18), (18, 19), (19, 32), (32, 36), (36, LENGTH)):
        output = layer(x[:, start:stop], consecutive(stop - start, start=start), state)
        state = output.state
        now = max(0, stop // 4 - 1) - max(0, start // 4 - 1)
        total += now * output.losses["compressive_reconstruction"].item()
        evictions += now
    assert total / evictions == pytest.approx(whole.item(), rel=1e-10)


def test_the_loss_of_packed_documents_is_that_of_each_alone() -> None:
    """Documents of 20 and 21 tokens, from which four windows are evicted each."""
    layer, x = layer_of().double(), inputs()
    documents = (torch.arange(LENGTH) >= 20).long().expand(2, -1)
    positions = torch.cat([torch.arange(20), torch.arange(21)]).expand(2, -1)
    packed = layer(x, Context(positions, documents=documents)).losses["compressive_reconstruction"]
    alone = [layer(part, consecutive(part.shape[1])).losses for part in x.split([20, 21], 1)]
    expected = sum(losses["compressive_reconstruction"] for losses in alone) / 2
    assert packed.item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_loss_is_zero_where_nothing_is_lost() -> None:
    """With the same token over and over, and a convolution that takes the mean."""
    layer = layer_of().double()
    with torch.no_grad():
        layer.compressor.map.weight.copy_(torch.eye(16).repeat(1, 2) / 2)  # type: ignore[union-attr, operator]
        layer.compressor.map.bias.zero_()  # type: ignore[union-attr, operator]
    x = inputs(time=1).expand(-1, LENGTH, -1)
    assert float(layer(x, consecutive(LENGTH)).losses["compressive_reconstruction"]) < 1e-12
    assert float(layer(inputs(), consecutive(LENGTH)).losses["compressive_reconstruction"]) > 1e-2


def test_the_loss_falls_on_a_frozen_network() -> None:
    layer = layer_of(segment=8, memory=8, rate=4)
    x = inputs(4, 64).float().cumsum(1)
    x = x / x.std()
    optimizer = torch.optim.Adam(layer.compressor.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = layer(x, consecutive(64, batch=4)).losses["compressive_reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_the_compressor_is_a_group_of_its_own() -> None:
    from lcbench.optimizer.adamw import AdamW

    layer: Attention = layer_of()
    apart = {id(parameter) for parameter in layer.compressor.parameters()}  # type: ignore[union-attr, operator]
    groups = [{id(p) for p in group["params"]} for group in AdamW().groups(layer)]
    assert all(group <= apart or not group & apart for group in groups)
    assert apart <= set.union(*groups)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"rate": 3},
            "attention.rate=3 does not divide attention.segment=4; the closest that does is attention.rate=",
        ),
        (
            {"memory": 6},
            "attention.memory=6 is no multiple of attention.segment=4; the closest is attention.memory=8.",
        ),
        (
            {"memory": 2},
            "attention.memory=2 is no multiple of attention.segment=4; the closest is attention.memory=4.",
        ),
        ({"compressed_memory": -1}, "attention.compressed_memory=-1 is no size"),
        ({"position": "absolute_sinusoidal"}, "position AbsoluteSinusoidal adds absolute places"),
    ],
)
def test_what_cannot_work_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{said}"):
        layer_of(**options)
