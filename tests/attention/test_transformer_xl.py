from __future__ import annotations

from typing import Any

import pytest
import torch

import lcbench
from lcbench.attention.transformer_xl import HiddenStates
from lcbench.conformance import LAWS, certify, oracle_of
from lcbench.errors import ConfigurationError
from tests.position.harness import consecutive, distance

LENGTH = 24


def layer_of(position: str = "transformer_xl", **options: Any) -> Any:
    torch.manual_seed(0)
    return lcbench.build_attention("transformer_xl", d_model=16, n_heads=2, position=position, **options).double()


def inputs() -> torch.Tensor:
    return torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_papers_composition() -> None:
    """The mechanism with the paper's own encoding."""
    options = {"segment": 8, "memory": 8, "same_length": False}
    certificate = certify(
        lambda: layer_of(**options).float(),
        laws=tuple(law for law in LAWS if law.__name__ in ("agrees_with_its_oracle", "chunk_invariance")),
        oracle=oracle_of(
            "transformer_xl",
            "transformer_xl",
            n_heads=2,
            attention_options=options,
            position_options={"clamp_length": None},
        ),
    )
    assert certificate.passed, [(check.name, check.detail) for check in certificate.checks if check.passed is False]


def test_without_memory_segments_are_read_alone() -> None:
    layer, x = layer_of(segment=6, memory=0), inputs()
    alone = [layer(part, consecutive(6)).y for part in x.split(6, 1)]
    assert distance(layer(x, consecutive(LENGTH)).y, torch.cat(alone, 1)) < 1e-12


def test_a_constant_added_to_all_positions_changes_nothing() -> None:
    """But for where segments begin: the constant is a multiple of their length."""
    layer, x = layer_of(segment=6, memory=5), inputs()
    near, far = (layer(x, consecutive(LENGTH, start=start)).y for start in (0, 600))
    assert distance(near, far) < 1e-10


def test_gradient_through_a_detached_memory_reaches_the_maps_and_not_the_tokens() -> None:
    layer, x = layer_of(segment=8, memory=8), inputs()
    first = x[:, :8].clone().requires_grad_()
    state = layer(first, consecutive(8)).state
    assert isinstance(state, HiddenStates)

    def gradients(state: HiddenStates) -> list[torch.Tensor]:
        # every token of the segment but the first is the same, so that values of the segment alone teach little
        y = layer(x[:, 8:16].detach(), consecutive(8, start=8), state).y
        wanted = [layer.k.weight, layer.v.weight, first]
        return list(torch.autograd.grad(y.square().sum(), wanted, allow_unused=True, materialize_grads=True))

    detached, undetached = gradients(state.detach()), gradients(state)
    assert not detached[2].any()
    assert undetached[2].any()
    for one, other in zip(detached[:2], undetached[:2], strict=True):
        assert distance(one, other) < 1e-12  # the same: maps get all their gradient through memory rows either way
    hidden = gradients(state.detach().reset(torch.ones(2, dtype=torch.bool)))
    assert distance(hidden[0], detached[0]) > 1e-3


def test_the_same_length_reaches_so_far_and_no_further() -> None:
    """Two layers with M keys each: a token 2 (M - 1) before is seen, one further back is not."""
    memory = 5
    layers = [layer_of(segment=4, memory=memory, same_length=True) for _ in range(2)]
    x = inputs().requires_grad_()
    hidden = x
    for layer in layers:
        hidden = hidden + layer(hidden, consecutive(LENGTH)).y
    (gradient,) = torch.autograd.grad(hidden[:, -1].square().sum(), x)
    touched = gradient.any(-1).any(0).nonzero()[:, 0]
    assert int(touched[0]) == LENGTH - 1 - 2 * (memory - 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"segment": 0}, "attention.segment=0 holds nothing; the least is attention.segment=1."),
        ({"memory": -1}, "attention.memory=-1 with attention.same_length=false is no size; the least is"),
        ({"memory": 0, "same_length": True}, "attention.memory=0 with attention.same_length=true is no size;"),
        ({"position": "absolute_sinusoidal"}, "position AbsoluteSinusoidal adds absolute places"),
    ],
)
def test_what_cannot_work_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{said}"):
        layer_of(**options)


def test_absolute_positions_are_fine_without_memory() -> None:
    layer_of("absolute_sinusoidal", memory=0)
