from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lcbench
from lcbench.attention.base import Context
from lcbench.attention.linear import LinearState, Spans, causal_product
from lcbench.errors import ConfigurationError
from tests.position.harness import consecutive, distance

LENGTH, HEADS, WIDTH = 12, 2, 4


def documents() -> Context:
    """Row 0 has documents of 1, 4, 1 and 6 tokens, row 1 one of 12; the last two of row 0 are padding."""
    number = torch.tensor([[3, 5, 5, 5, 5, 6, 9, 9, 9, 9, 9, 9], [0] * LENGTH])
    padding = torch.zeros_like(number, dtype=torch.bool)
    padding[0, -2:] = True
    return Context(torch.arange(LENGTH).expand(2, -1), documents=number, padding=padding)


def inputs() -> list[Tensor]:
    """q, k and v ``[2, heads, time, width]``, and S ``[2, heads, width, width]`` of tokens before."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, HEADS, LENGTH, WIDTH)] * 3 + [(2, HEADS, WIDTH, WIDTH)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def in_pairs(q: Tensor, k: Tensor, v: Tensor, s: Tensor, numbers: Tensor, before: int) -> tuple[Tensor, Tensor]:
    """The definition, all pairs at once: weights ``q_i . k_j`` for j <= i of the same document."""
    past = numbers == before
    same = (numbers[:, :, None] == numbers[:, None, :])[:, None]
    o = (q @ k.transpose(-1, -2)).tril() * same @ v + q * past[:, None, :, None] @ s
    ends = (numbers == numbers[:, -1:])[:, None, :, None]
    goes_on = (numbers[:, -1] == before)[:, None, None, None]
    return o, s * goes_on + (k * ends).transpose(-1, -2) @ v


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("chunk", [1, 2, 5, LENGTH, 100])
def test_every_chunk_gives_what_all_pairs_give(chunk: int, before: int) -> None:
    tensors, context = inputs(), documents()
    state = LinearState(tensors[3], tensors[3][..., 0], torch.full((2,), before))
    spans, last = Spans.of(context, state, chunk)
    assert last is not None
    assert last.tolist() == [9, 0]
    actual = causal_product(*tensors, spans)  # type: ignore[arg-type]
    assert context.documents is not None
    expected = in_pairs(*tensors, context.documents, before)  # type: ignore[arg-type]
    weights = [torch.randn_like(tensor) for tensor in expected]
    for one, other in zip(
        [*actual, *torch.autograd.grad(actual, tensors, weights)],
        [*expected, *torch.autograd.grad(expected, tensors, weights)],
        strict=True,
    ):
        assert distance(one, other) < 1e-12


@pytest.mark.parametrize("context", [consecutive(LENGTH), documents()], ids=["whole", "documents"])
def test_the_backward_pass_is_the_derivative(context: Context) -> None:
    tensors = inputs()
    state = LinearState(tensors[3], tensors[3][..., 0], None if context.documents is None else torch.zeros(2).long())
    spans, _ = Spans.of(context, state, 5)
    assert torch.autograd.gradcheck(lambda *t: causal_product(*t, spans), tensors)  # type: ignore[arg-type, misc]


def test_outputs_are_means_of_values() -> None:
    """With all values the same, every output is that value, however long the past."""
    layer = lcbench.build_attention("linear", d_model=16, n_heads=2)
    with torch.no_grad():
        layer.v.weight.zero_()
    y = layer(torch.randn(2, 200, 16), consecutive(200)).y
    assert distance(y, layer.output(layer.v.bias).expand_as(y)) < 1e-5


def test_rotation_makes_outputs_depend_on_distance_alone() -> None:
    layer = lcbench.build_attention("linear", d_model=16, n_heads=2, position="rope").double()
    x = torch.randn(2, LENGTH, 16, dtype=torch.float64)
    near, far = (layer(x, consecutive(LENGTH, start=start)).y for start in (0, 100))
    assert distance(near, far) < 1e-10


def test_features_that_underflow_give_finite_numbers() -> None:
    layer = lcbench.build_attention("linear", d_model=16, n_heads=2)
    with torch.no_grad():
        for project in (layer.q, layer.k):
            project.weight.zero_()
            project.bias.fill_(-300)
    output = layer(torch.randn(2, LENGTH, 16, requires_grad=True), consecutive(LENGTH))
    output.y.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "position",
    [
        {"name": "alibi"},
        {"name": "cope", "p_max": 4},
        {"name": "yarn", "context": 64},
        {"name": "dynamic_ntk", "context": 64},
    ],
)
def test_an_encoding_that_acts_on_scores_is_refused_by_name(position: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"(?i)position \w+ .*attention=linear has none; the closest"):
        lcbench.build_attention("linear", d_model=16, n_heads=2, position=position)
