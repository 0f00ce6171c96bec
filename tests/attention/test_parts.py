"""One softmax over several parts: against the softmax of all keys, and with a bound on the tensors it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lcbench
from lcbench.attention import parts as parts_module
from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues
from lcbench.attention.flash import flash, flash_backward
from lcbench.attention.parts import InOrder, Part, attend_parts
from lcbench.attention.ranges import First, Slots, document_bounds, ranges
from lcbench.attention.reach import Window
from lcbench.attention.residues import Residues
from lcbench.position.base import LayerShape, PositionEncoding
from tests.position.harness import distance

TIME, OTHERS, WINDOW = 300, 200, 9


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def two_parts(k: Tensor, v: Tensor) -> tuple[Context, list[Part], Tensor]:
    """A window, and ``OTHERS`` keys that a query at t sees the first ``max(0, t - 30)`` of, some to none: enough for
    calls with and without a mask. The last: what is visible, ``[time, keys]``."""
    context = Context(torch.arange(TIME)[None].expand(2, -1))
    near = KeyValues.of(k[:, :, :TIME], v[:, :, :TIME], None, context)
    far_context = Context(torch.arange(OTHERS)[None].expand(2, -1))
    far = KeyValues.of(k[:, :, TIME:], v[:, :, TIME:], None, far_context)
    highs = np.clip(np.arange(TIME) - 30, 0, OTHERS)
    pairs = ranges(context, far, None, np.zeros(TIME, np.int64), highs, True)
    i, j = torch.arange(TIME)[:, None], torch.arange(TIME + OTHERS)
    visible = (j <= i) & (j > i - WINDOW) | (j >= TIME) & (j < TIME + torch.from_numpy(highs)[:, None])
    return context, [Part.near(context, near, Window(WINDOW)), Part(far, pairs, InOrder())], visible


class Reads(PositionEncoding):
    """Reads scores, to add nothing."""

    def content_bias(self, q: Tensor, k: Tensor, scores: Tensor, *facts: Any) -> Tensor:
        return 0 * scores


@pytest.mark.parametrize("encoding", [PositionEncoding, Reads])  # the fused path, and the explicit one
def test_parts_are_one_softmax(encoding: type[PositionEncoding]) -> None:
    q, k, v = drawn(2, 3, TIME, 8), drawn(2, 3, TIME + OTHERS, 8), drawn(2, 3, TIME + OTHERS, 9)[..., :8]
    leaves = [tensor.requires_grad_() for tensor in (q, k, v.clone())]
    context, parts, visible = two_parts(*leaves[1:])
    o = attend_parts(leaves[0], context, parts, encoding(LayerShape(24, 3)), heads=range(3))
    scores = leaves[0] @ leaves[1].mT * 8**-0.5
    expected = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ leaves[2]
    assert distance(o, expected) < 1e-12
    gradient = drawn(*o.shape)
    ours, theirs = (torch.autograd.grad(y, leaves, gradient) for y in (o, expected))
    assert max(distance(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-12


def test_scores_beyond_what_an_exponential_holds() -> None:
    """The parts are brought together by logarithms: a part whose sum would overflow, or vanish, does no harm."""
    q, k, v = drawn(2, 1, TIME, 8), drawn(2, 1, TIME + OTHERS, 8), drawn(2, 1, TIME + OTHERS, 8)
    leaves = [tensor.requires_grad_() for tensor in (1e4 * q, k, v)]
    context, parts, visible = two_parts(*leaves[1:])
    o = attend_parts(leaves[0], context, parts, PositionEncoding(LayerShape(8, 1)), heads=[0])
    expected = (leaves[0] @ leaves[1].mT * 8**-0.5).masked_fill(~visible, -torch.inf).softmax(-1) @ leaves[2]
    assert distance(o, expected) < 1e-9
    assert all(g.isfinite().all() for g in torch.autograd.grad(o.sum(), leaves))


@pytest.mark.parametrize("kind", ["causal", "masked", "plain"])
def test_by_hand_as_the_kernel(kind: str) -> None:
    """Where the device has no kernel that gives logarithms, the same is computed by hand."""
    q, k, v, d_o = (drawn(2, 3, 20, 8) + n for n in range(4))
    visible = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = None
    if kind == "masked":
        mask = torch.full((20, 20), 0.3, dtype=torch.float64)[None, None]
        mask = mask.masked_fill(~visible, torch.finfo(torch.float64).min)
    arguments = (q, k, v, kind == "causal", mask)
    (o, total), (kernel_o, kernel_total) = parts_module.by_hand(*arguments), flash(*arguments)
    assert distance(o, kernel_o) < 1e-12
    assert distance(total, kernel_total) < 1e-12
    ours = parts_module.by_hand_backward(d_o, q, k, v, o, total, kind == "causal", mask)
    theirs = flash_backward(d_o, q, k, v, o, total, kind == "causal", mask)
    assert max(distance(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-12


@pytest.mark.parametrize("stride", [1, 3, 7])
@pytest.mark.parametrize("told", [{}, {"documents": torch.zeros(2, 10, dtype=torch.int64)}])
def test_what_is_laid_out_by_residues_is_lifted_again(stride: int, told: dict[str, Any]) -> None:
    """Queries are the last 10 of 23 keys; rows alike, or not known to be."""
    x = drawn(2, 3, 23, 4)
    all_ = Context(torch.arange(40, 63)[None].expand(2, -1))
    last = Context(torch.arange(53, 63)[None].expand(2, -1), **told)
    keys = KeyValues.of(x, x, None, all_)
    layout = Residues(last, keys if not told else keys.reset(torch.zeros(2, dtype=torch.bool)), stride)
    assert (layout.start is None) == bool(told)
    assert torch.equal(layout.lift(layout.queries(x[:, :, 13:])), x[:, :, 13:])
    in_place = layout.keys(torch.arange(23.0)[None, None, :, None].expand(2, 1, -1, -1))
    assert set(in_place.long().flatten().tolist()) == set(range(23))


@pytest.mark.parametrize("rule", [First(7), Slots(6, 2, 4), Slots(5, 4, 5)])
def test_rules_count_what_they_choose(rule: Any) -> None:
    chosen = rule.chooses(torch.arange(40)).numpy()
    counted = [int(chosen[:n].sum()) for n in range(40)]
    assert rule.below(np.arange(40)).tolist() == counted
    assert rule.below(np.array([-3, -1])).tolist() == [0, 0]


def test_bounds_of_documents() -> None:
    context = Context(torch.zeros(1, 6, dtype=torch.int64), documents=torch.tensor([[4, 4, 2, 2, 2, 9]]))
    counts = torch.tensor([[5, 6, 6, 7, 8, 8]])  # before each token; five of them in earlier calls
    first, last = document_bounds(context, counts, 9)
    assert first.tolist() == [[0, 0, 6, 6, 6, 8]]
    assert last.tolist() == [[6, 6, 8, 8, 8, 9]]


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes())
        return result


def layers() -> Iterator[Any]:
    for name, position, options in (
        ("longformer", "rope", {"window": 32, "dilation": [1, 3], "global_tokens": 4}),
        ("longformer", "alibi", {"window": 32, "dilation": [1, 3]}),
        ("longformer", "t5", {"window": 32, "global_tokens": 4}),
        ("sparse_transformer", "rope", {"stride": 32, "summaries": 1}),
        ("sparse_transformer", "alibi", {"stride": 32, "pattern": "strided"}),
        ("sparse_transformer", "relative", {"stride": 32, "pattern": "strided"}),
    ):
        yield pytest.param(name, position, options, id=f"{name}-{position}-{len(options)}")


@pytest.mark.parametrize(("name", "position", "options"), layers())
@pytest.mark.parametrize("documents", [False, True])
def test_no_tensor_is_quadratic_in_time(name: str, position: str, options: dict[str, Any], documents: bool) -> None:
    encoding: Any = {"name": "relative", "context": 64} if position == "relative" else position
    layer = lcbench.build_attention(name, d_model=8, n_heads=2, position=encoding, **options)

    def largest(length: int) -> int:
        x = torch.randn(1, length, 8, requires_grad=True)
        context = Context(torch.arange(length)[None])
        if documents:
            at = torch.arange(length)[None]
            context = Context(at % 500, documents=at // 500)
        with Largest() as made:
            layer(x, context).y.sum().backward()
        return made.numbers

    short, long = largest(1024), largest(4096)
    # a block may hold so many numbers, however long the text
    assert long <= max(4.5 * short, 4 * 2**20)


def test_a_full_matrix_would_be_noticed() -> None:
    def largest(function: Callable[[Tensor], Tensor]) -> int:
        with Largest() as made:
            function(torch.randn(1024, 4))
        return made.numbers

    assert largest(lambda x: (x @ x.T).softmax(-1) @ x) == 4 * 1024**2
