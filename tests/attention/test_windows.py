"""Windows of which every block has the same mask, against the definition, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lcbench.attention import windows
from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues
from lcbench.attention.reach import Window
from lcbench.attention.scoring import attend
from lcbench.position.alibi import Alibi
from lcbench.position.base import Alignment, LayerShape, PositionEncoding
from lcbench.position.none import NoPosition
from lcbench.position.t5 import T5

SHAPE = LayerShape(d_model=12, n_heads=3)
BEFORE, TIME = 11, 23


@pytest.fixture(params=["kept", "made again"], autouse=True)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four queries of one row, whose weights are kept for the backward pass or not."""
    monkeypatch.setattr(windows, "_LEAST_ROWS", 4)
    monkeypatch.setattr(windows, "_MOST_ROWS", 4)
    monkeypatch.setattr(windows, "_PAIRS", 1)
    if request.param != "kept":
        monkeypatch.setattr(windows, "room_for_blocks", lambda *tensors: 100)


def literal(position: PositionEncoding, q: Tensor, k: Tensor, v: Tensor, width: int, causal: bool) -> Tensor:
    i, j = torch.arange(q.shape[2]) + BEFORE, torch.arange(k.shape[2])
    n = i[:, None] - j
    scores = q @ k.mT / q.shape[-1] ** 0.5
    bias = position.position_bias(Alignment(i[None], j[None], None))
    scores = scores if bias is None else scores + bias
    visible = ((n >= 0) & (n < width)) if causal else (n.abs() < width)
    return torch.softmax(scores.masked_fill(~visible, -torch.inf), -1) @ v


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width", [1, 2, 5, 9, 30])
@pytest.mark.parametrize("name", ["none", "alibi", "t5"])
@pytest.mark.parametrize("batch", [1, 2])
def test_outputs_and_gradients_are_those_of_the_definition(name: str, width: int, causal: bool, batch: int) -> None:
    torch.manual_seed(0)
    position = {
        "none": lambda: NoPosition(SHAPE),
        "alibi": lambda: Alibi(SHAPE),
        "t5": lambda: T5(SHAPE, buckets=8, max_distance=20, two_sided=True),
    }[name]().double()
    q, d_o = (torch.randn(batch, 3, TIME, 4, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(batch, 3, BEFORE + TIME, 4, dtype=torch.float64) for _ in range(2))
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)] + list(position.parameters())
    places = torch.arange(5, 5 + BEFORE + TIME).expand(batch, -1)
    keys = KeyValues(k, v, positions=places)
    ours = attend(q, Context(places[:, BEFORE:]), keys, position, causal=causal, reach=Window(width))
    assert ours.grad_fn is not None
    assert (ours.grad_fn.name() == "_WindowsBackward") == (width < BEFORE + TIME)
    theirs = literal(position, q, k, v, width, causal)
    torch.testing.assert_close(ours, theirs)
    found = torch.autograd.grad(ours, inputs, d_o, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(theirs, inputs, d_o), strict=True):
        torch.testing.assert_close(one, other)
    # a second pass through the same graph finds no kept weights
    for one, other in zip(torch.autograd.grad(ours, inputs, d_o), found, strict=True):
        torch.testing.assert_close(one, other)


def test_no_more_weights_are_kept_than_queries_keys_and_values_have_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "room_for_blocks", lambda *tensors: sum(tensor.numel() for tensor in tensors))
    time = 200
    q, k, v = (torch.randn(1, 3, time, 4, requires_grad=True) for _ in range(3))
    places = torch.arange(time)[None]
    keys = KeyValues(k, v, positions=places)
    o = attend(q, Context(places), keys, NoPosition(SHAPE), reach=Window(32))
    kept = o.grad_fn.kept  # type: ignore[union-attr]
    assert 0 < sum(weights.numel() for weights in kept) <= 3 * q.numel()
    with torch.no_grad():
        assert attend(q, Context(places), keys, NoPosition(SHAPE), reach=Window(32)).grad_fn is None
