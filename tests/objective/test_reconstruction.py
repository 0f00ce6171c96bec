"""Layers' own losses: their weight, and a clip that keeps what they teach apart from the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lcbench.attention.base import AttentionOutput, Context, State
from lcbench.attention.full import Full
from lcbench.dataset.base import Batch
from lcbench.errors import ConfigurationError
from lcbench.model.decoder import Decoder
from lcbench.objective.base import Step
from lcbench.objective.next_token import NextToken
from lcbench.objective.reconstruction import Reconstruction
from lcbench.optimizer.adamw import AdamW
from lcbench.position.none import NoPosition
from tests.conftest import TINY


class Compressor(nn.Linear):
    own_group: ClassVar[dict[str, Any]] = {"weight": {"clip": "compressor"}}


class Compressing(Full):
    """Full attention with a map beside it that learns to compress pairs of tokens, and touches nothing else."""

    own_losses = ("compression",)

    def __init__(self, shape: Any, position: Any) -> None:
        super().__init__(shape, position)
        self.compressor = Compressor(2 * shape.d_model, shape.d_model, bias=False)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        output = super().forward(x, context, state)
        pairs = x.detach()[:, : x.shape[1] // 2 * 2].unflatten(1, (-1, 2))  # [batch, pairs, 2, d_model]
        loss = (self.compressor(pairs.flatten(2)) - pairs.mean(2)).square().mean()
        return replace(output, losses={"compression": loss})


def network() -> Decoder:
    torch.manual_seed(0)
    return Decoder(5, Compressing, NoPosition, d_model=8, n_heads=2, n_layers=2)


def trained(weight: float, clip_norm: float | None, steps: int = 3) -> dict[str, Tensor]:
    """The parameters after a few updates."""
    model, objective = network(), Reconstruction(weight=weight)
    recipe = AdamW(lr=0.01, clip_norm=clip_norm)
    optimizer, _ = recipe.build(model, steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        tokens = torch.randint(5, (4, 8), generator=generator)
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        output = model(tokens)
        losses = objective(output, Batch(tokens, tokens, everywhere, everywhere), Step(0.0, pytest.fail))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        recipe.clip(optimizer.param_groups)
        optimizer.step()
    return dict(model.state_dict())


def test_losses_are_weighted_and_named() -> None:
    model, tokens = network(), torch.randint(5, (2, 8))
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    output, batch = model(tokens), Batch(tokens, tokens, everywhere, everywhere)
    step = Step(0.0, lambda: output)
    plain, ours = NextToken()(output, batch, step), Reconstruction(weight=0.25)(output, batch, step)
    assert list(ours) == list(plain) == ["next_token", "compression"]
    torch.testing.assert_close(ours["compression"], 0.25 * plain["compression"])
    assert torch.equal(ours["next_token"], plain["next_token"])


def test_what_a_compressor_learns_does_not_change_the_networks_update() -> None:
    """Its gradient a thousand times larger, both far above the clip: every other parameter to the bit the same."""
    small, large = trained(1.0, 0.01), trained(1000.0, 0.01)
    for name in small:
        if "compressor" not in name:
            assert torch.equal(small[name], large[name]), name
    start = network().state_dict()
    assert all(not torch.equal(start[name], large[name]) for name in start if "compressor" in name)
    still = trained(0.0, 0.01)
    # AdamW moves a parameter without gradient by nothing
    assert all(torch.equal(start[name], still[name]) for name in start if "compressor" in name)


def test_each_clip_has_a_norm_of_its_own() -> None:
    one, two, three = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    for parameter, gradient in ((one, [3.0, 0.0]), (two, [0.0, 4.0]), (three, [30.0, 40.0])):
        parameter.grad = torch.tensor(gradient)
    groups: list[dict[str, Any]] = [{"params": [one]}, {"params": [two]}, {"params": [three], "clip": "compressor"}]
    AdamW(clip_norm=1.0).clip(groups)
    torch.testing.assert_close(one.grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(two.grad, torch.tensor([0.0, 0.8]))
    torch.testing.assert_close(three.grad, torch.tensor([0.6, 0.8]))
    AdamW().clip(groups)
    torch.testing.assert_close(three.grad, torch.tensor([0.6, 0.8]))


def test_a_run_clips_by_group_and_logs_each_loss(run_here) -> None:  # type: ignore[no-untyped-def]
    words = (
        "attention._target_=tests.objective.test_reconstruction.Compressing",
        "position=none",
        "optimizer.clip_norm=0.01",
        "objective=reconstruction",
    )
    found = {}
    for weight in (1.0, 1000.0):
        result, folder, _ = run_here(*words, f"objective.weight={weight}")
        assert result["status"] == "completed", result["error"]
        assert "train/loss/compression" in (folder / "run.log").read_text()
        found[weight] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in found[1.0].items():
        if "compressor" not in name:
            assert torch.equal(value, found[1000.0][name]), name


def test_a_network_without_losses_is_refused() -> None:
    from lcbench.composition import build, compose

    with pytest.raises(ConfigurationError, match=r"objective=reconstruction: no layer .* objective=next_token"):
        build(compose([*TINY, "objective=reconstruction"]))
    with pytest.raises(ConfigurationError, match=r"objective.weight=-1"):
        Reconstruction(weight=-1.0)
