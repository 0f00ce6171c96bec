"""What the conformance suite does not ask: the search itself, the memory's limits, and what may learn."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from lcbench.attention import nearest
from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues
from lcbench.attention.memorizing import Memorizing
from lcbench.attention.nearest import Approximate, Exact, largest
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape
from lcbench.position.none import NoPosition

SHAPE = LayerShape(d_model=16, n_heads=2)


def made(**options: Any) -> Memorizing:
    torch.manual_seed(0)
    return Memorizing(SHAPE, NoPosition(SHAPE), **{"segment": 4, "cache": 2, "retrieved": 3, **options}).double()


def inputs(time: int, start: int = 0) -> tuple[Tensor, Context]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, start + time, 16, generator=generator, dtype=torch.float64)
    return x[:, start:], Context(positions=torch.arange(start, start + time).repeat(2, 1))


@pytest.mark.parametrize("width", [1, 5, 31, 64, 127, 1000, 1001])
@pytest.mark.parametrize("count", [1, 4])
def test_the_largest_are_found(width: int, count: int) -> None:
    scores = torch.randn(3, 7, width, generator=torch.Generator().manual_seed(width))
    scores[0, :, width // 2 :] = -torch.inf
    count = min(count, width)
    best, index = largest(scores, count)
    assert torch.equal(best.sort(-1).values, scores.topk(count).values.sort(-1).values)
    assert torch.equal(scores.gather(-1, index), best)
    assert all(len(set(row.tolist())) == count for row in index.flatten(0, 1))


@pytest.mark.parametrize("pairs", [7, 100, 2**20])
def test_exact_search_finds_the_nearest_and_holds_few_scores(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def watched(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        held.append(scores.numel())
        return largest(scores, count)

    monkeypatch.setattr(nearest, "_PAIRS", pairs)
    monkeypatch.setattr(nearest, "largest", watched)
    q, k = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (5, 40))
    seen = torch.rand(2, 30) < 0.5
    seen[1] = False
    seen[1, 3:5] = True
    scores, index = Exact(k, None, 4)(q, slice(6, 36), seen)
    expected = (q @ k[:, :, 6:36].mT).masked_fill(~seen[:, None, None], -torch.inf).topk(4).values
    assert torch.allclose(scores.sort(-1).values, expected.sort(-1).values)
    exact = (q[..., None, :] * k[:, :, None].expand(-1, -1, 5, -1, -1).gather(3, _wide(index, 8))).sum(-1)
    assert torch.allclose(torch.where(scores.isfinite(), exact, scores), scores)
    assert (scores[1].isfinite().sum(-1) == 2).all()
    assert max(held) <= max(pairs, 30)


def _wide(index: Tensor, width: int) -> Tensor:
    return index[..., None].expand(*index.shape, width)


def test_without_a_memory_or_with_a_shut_gate_the_layer_is_local() -> None:
    x, context = inputs(23)
    empty, shut = made(memory=0), made(memory=50)
    with torch.no_grad():
        shut.beta.fill_(-torch.inf)
    expected = empty(x, context)
    assert torch.equal(shut(x, context).y, expected.y)
    assert "retrieval_distance" not in expected.measures


def test_a_larger_memory_changes_nothing_before_it_is_needed() -> None:
    x, context = inputs(40)
    small, large = made(memory=9)(x, context).y, made(memory=1000)(x, context).y
    assert torch.equal(small[:, : 9 + 2], large[:, : 9 + 2])
    assert not torch.allclose(small[:, -1], large[:, -1])


@pytest.mark.parametrize(("memory", "overlap", "kept"), [(9, False, 3 + 2 + 9), (9, True, 3 + 9), (1, True, 3 + 2)])
def test_the_oldest_are_dropped(memory: int, overlap: bool, kept: int) -> None:
    layer = made(memory=memory, overlap=overlap)
    for time in (1, kept - 1, kept, kept + 1, 3 * kept):
        state = layer(*inputs(time)).state
        assert isinstance(state, KeyValues)
        assert state.positions[0].tolist() == list(range(max(0, time - kept), time))


def test_the_order_in_memory_does_not_matter() -> None:
    layer = made(memory=100)
    state = layer(*inputs(16)).state
    x, context = inputs(3, start=16)
    order = torch.cat([torch.randperm(14), torch.tensor([14, 15])])  # 14 and 15 lie in the cache
    shuffled = dataclasses.replace(state, k=state.k[:, :, order], v=state.v[:, :, order])
    assert torch.allclose(layer(x, context, shuffled).y, layer(x, context, state).y, atol=1e-12)
    reversed_cache = torch.cat([torch.arange(13), torch.tensor([15, 14, 13])])
    moved = dataclasses.replace(state, k=state.k[:, :, reversed_cache], v=state.v[:, :, reversed_cache])
    assert not torch.allclose(layer(x, context, moved).y, layer(x, context, state).y)


def test_no_gradient_enters_the_memory_and_queries_learn_from_it() -> None:
    layer = made(memory=100)
    state = layer(*inputs(16)).state.map(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t)
    x, context = inputs(1, start=16)
    y = layer(x, context, state).y
    d_k, d_v = torch.autograd.grad(y.sum(), [state.k, state.v], retain_graph=True)
    for gradient in (d_k, d_v):
        assert not gradient[:, :, :14].any()
        assert gradient[:, :, 14:].any()
    with torch.no_grad():
        layer.beta.fill_(torch.inf)  # nothing but the memory
    (d_q,) = torch.autograd.grad(layer(x, context, state).y.sum(), layer.q.weight)
    assert d_q.any()


def test_measures_are_the_gate_and_how_far_back_was_read() -> None:
    layer = made(memory=8, cache=0, retrieved=100, initial_gate=0.25)
    measures = layer(*inputs(12)).measures
    assert torch.allclose(measures["gate"], torch.full((2,), 0.25, dtype=torch.float64))
    pairs = [i - j for i in range(12) for j in range(12) if i - i % 4 - 8 <= j < i - i % 4]
    assert torch.allclose(measures["retrieval_distance"], torch.tensor(sum(pairs) / len(pairs)))


@pytest.mark.parametrize(("n_layers", "layer"), [(1, 0), (2, 1), (4, 2), (12, 8)])
def test_one_layer_remembers_unless_told_otherwise(n_layers: int, layer: int) -> None:
    def layers(**options: Any) -> list[Memorizing]:
        shapes = [LayerShape(16, 2, layer=number, n_layers=n_layers) for number in range(n_layers)]
        return [Memorizing(shape, NoPosition(shape), **options) for shape in shapes]

    assert [number for number, one in enumerate(layers()) if one.remembers] == [layer]
    assert [number for number, one in enumerate(layers(memory_layers=[0])) if one.remembers] == [0]
    assert all(hasattr(one, "beta") == one.remembers for one in layers())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory_layers": [3]}, "the closest is 0"),
        ({"memory_layers": [-1]}, "the closest is 0"),
        ({"segment": 0}, "attention.segment=1"),
        ({"memory": -1}, "attention.memory=0"),
        ({"retrieved": 0}, "the least is 1"),
        ({"initial_gate": 1.0}, "such as 0.99"),
        ({"initial_scale": 0.0}, "such as 10"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        made(**options)


def test_faiss_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigurationError, match=r"lcbench\[faiss\].*attention.search=exact"):
        made(search="faiss")


def clustered(count: int, generator: torch.Generator) -> Tensor:
    """Unit vectors ``[1, 2, count, 16]`` around 64 centres, as keys of a trained layer lie."""
    centres = torch.randn(64, 16, generator=generator)
    chosen = centres[torch.randint(64, (1, 2, count), generator=generator)]
    return torch.nn.functional.normalize(chosen + 0.4 * torch.randn(1, 2, count, 16, generator=generator), dim=-1)


def test_faiss_finds_nearly_what_exact_search_finds() -> None:
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(0)
    q, k = clustered(50, generator), clustered(6000, generator)
    hidden = torch.zeros(1, 6000, dtype=torch.bool)
    hidden[0, 5000:5100] = True
    seen = ~hidden[:, 500:5500]
    _, wanted = Exact(k, hidden, 8)(q, slice(500, 5500), seen)
    _, index = Approximate(k, hidden, 8)(q, slice(500, 5500), seen)
    assert ((index >= 500) & (index < 5500) & ~hidden[0, index]).all()
    recall = (index[..., None] == wanted[..., None, :]).any(-1).float().mean()
    assert recall > 0.8
    few = slice(0, 1000)
    assert torch.equal(Approximate(k, None, 8)(q, few, None)[1], Exact(k, None, 8)(q, few, None)[1])


def test_a_layer_reads_with_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(Approximate, "least", 4)
    x, context = inputs(200)
    exact, faiss = (made(memory=1000, search=search, retrieved=1000) for search in ("exact", "faiss"))
    documents = torch.where(context.positions < 90, 0, 1)
    positions = torch.where(context.positions < 90, context.positions, context.positions - 90)
    packed = Context(positions=positions, documents=documents)
    for facts in (context, packed):
        a, b = exact(x, facts).y, faiss(x, facts).y
        assert (a - b).norm() < 0.5 * a.norm()
    assert torch.allclose(exact(x, packed).y[:, 90:], exact(x[:, 90:], inputs(110)[1]).y)
