"""Every encoding against its literal definition, and the laws that all of them obey."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lcbench.attention import explicit, scoring
from lcbench.attention.base import Context
from lcbench.position.base import PositionEncoding
from lcbench.position.none import NoPosition
from tests.position.harness import (
    CASES,
    IDS,
    SHAPE,
    attention,
    build,
    by_rows,
    consecutive,
    distance,
    draw,
    unplaced,
)

TIME = 9
ARGUMENTS = ("name", "encoding", "options")
every_case = pytest.mark.parametrize(ARGUMENTS, CASES, ids=IDS)
#: encodings whose scores are those of none when their parameters are zero
ADDED = [case for case in CASES if case[0] not in ("rope", "cope_rope", "pi", "ntk", "dynamic_ntk", "yarn", "alibi")]
Class = type[PositionEncoding]
Options = dict[str, Any]

#: jumps, as behind padding or around retrieved memory; increasing, so that no visible distance is negative
JUMPS = Context(torch.tensor([[0, 1, 2, 5, 6, 7, 11, 12, 30], [3, 4, 5, 6, 7, 8, 9, 10, 11]]), consecutive=False)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two queries of one batch row; some are kept for the backward pass, some are made again."""
    monkeypatch.setattr(explicit, "room_for_blocks", lambda *tensors: 50)
    monkeypatch.setattr(explicit, "_PAIRS", 1)
    monkeypatch.setattr(explicit, "_LEAST_ROWS", 2)
    monkeypatch.setattr(scoring, "_FUSED_ROWS", 2)


def gradients(output: Tensor, encoding: PositionEncoding, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    inputs = [*tensors, *encoding.parameters()]
    found = torch.autograd.grad(output, inputs, weights, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]


@every_case
@pytest.mark.parametrize("context", [consecutive(TIME), consecutive(TIME, start=7), JUMPS], ids=["0", "7", "jumps"])
@pytest.mark.usefixtures("small_blocks")
def test_agrees_with_its_definition(name: str, encoding: Class, options: Options, context: Context) -> None:
    made, tensors = build(encoding, options), draw(TIME)
    ours, theirs = attention(made, tensors, context), by_rows(name, made, options, tensors, context.positions)
    assert distance(ours, theirs) < 1e-12
    for a, b in zip(gradients(ours, made, tensors), gradients(theirs, made, tensors), strict=True):
        assert distance(a, b) < 1e-11


@pytest.mark.parametrize("name", ["absolute_learned", "absolute_sinusoidal"])
def test_embeddings_agree_with_their_definition(name: str) -> None:
    _, encoding, options = next(case for case in CASES if case[0] == name)
    made, (*_, x) = build(encoding, options), draw(TIME)
    oracle = importlib.import_module(f"tests.oracles.{name}")
    weights = dict(made.named_parameters())
    embedded = made.embed(x, JUMPS.positions)
    for b in range(len(x)):
        assert distance(embedded[b], oracle.embed(x[b], JUMPS.positions[b], weights)) < 1e-12


@every_case
def test_only_absolute_encodings_see_the_input(name: str, encoding: Class, options: Options) -> None:
    made, (*_, x) = build(encoding, options), draw(TIME)
    changed = distance(made.embed(x, JUMPS.positions), x) > 0
    assert changed == name.startswith("absolute")


@every_case
@pytest.mark.usefixtures("small_blocks")
def test_pieces_equal_the_whole(name: str, encoding: Class, options: Options) -> None:
    made, tensors, context = build(encoding, options), draw(TIME), consecutive(TIME)
    whole = attention(made, tensors, context)
    for last in (1, 2, 5):
        for claim in (context, unplaced(context)):
            assert distance(attention(made, tensors, claim, last=last), whole[:, :, -last:]) < 1e-12


@pytest.mark.parametrize(ARGUMENTS, [case for case in CASES if case[0] != "dynamic_ntk"])
def test_a_constant_added_to_all_positions_changes_nothing(name: str, encoding: Class, options: Options) -> None:
    made, tensors = build(encoding, options), draw(TIME)
    here, there = consecutive(TIME), consecutive(TIME, start=500)
    for claim in (lambda context: context, unplaced):
        assert distance(attention(made, tensors, claim(here)), attention(made, tensors, claim(there))) < 1e-10


@every_case
def test_what_is_later_changes_nothing(name: str, encoding: Class, options: Options) -> None:
    made, (q, k, v, x), context = build(encoding, options), draw(TIME), consecutive(TIME)
    changed = [tensor.detach().clone() for tensor in (q, k, v, x)]
    for tensor in changed[:3]:
        tensor[:, :, 5:] = 100
    changed[3][:, 5:] = 100
    before = attention(made, (q, k, v, x), context)[:, :, :5]
    assert torch.equal(attention(made, changed, context)[:, :, :5], before)


@every_case
@pytest.mark.usefixtures("small_blocks")
def test_documents_equal_each_alone(name: str, encoding: Class, options: Options) -> None:
    made, tensors = build(encoding, options), draw(TIME)
    parts = [slice(0, 4), slice(4, TIME)]
    positions = torch.cat([torch.arange(4), torch.arange(TIME - 4)]).expand(2, TIME)
    documents = torch.tensor([0] * 4 + [3] * (TIME - 4)).expand(2, TIME)
    for consecutive_ in (True, False):
        together = attention(made, tensors, Context(positions, documents=documents, consecutive=consecutive_))
        for part in parts:
            own = [*(tensor[:, :, part] for tensor in tensors[:3]), tensors[3][:, part]]
            alone = attention(made, own, consecutive(part.stop - part.start))
            assert distance(together[:, :, part], alone) < 1e-12


@every_case
@pytest.mark.usefixtures("small_blocks")
def test_padding_changes_nothing(name: str, encoding: Class, options: Options) -> None:
    made, tensors = build(encoding, options), draw(TIME)
    positions = torch.stack([(torch.arange(TIME) - 3).clamp(min=0), torch.arange(TIME)])
    padding = torch.zeros(2, TIME, dtype=torch.bool)
    padding[0, :3] = padding[1, 6:] = True
    padded = attention(made, tensors, Context(positions, padding=padding))
    for row, part in ((0, slice(3, TIME)), (1, slice(0, 6))):
        own = [*(tensor[row : row + 1, :, part] for tensor in tensors[:3]), tensors[3][row : row + 1, part]]
        alone = attention(made, own, consecutive(part.stop - part.start, batch=1))
        assert distance(padded[row : row + 1, :, part], alone) < 1e-12
    assert torch.equal(padded[0, :, :3], torch.zeros_like(padded[0, :, :3]))


@pytest.mark.parametrize(ARGUMENTS, ADDED)
def test_encodings_that_add_equal_none_at_zero(name: str, encoding: Class, options: Options) -> None:
    made, tensors, context = build(encoding, options), draw(TIME), consecutive(TIME)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert distance(attention(made, tensors, context), attention(NoPosition(SHAPE), tensors, context)) < 1e-12


def test_without_an_encoding_only_the_mask_knows_order() -> None:
    tensors, context = draw(TIME), consecutive(TIME)
    order = torch.tensor([4, 2, 0, 1, 3, 8, 6, 7, 5])
    permuted = [*(tensor[:, :, order] for tensor in tensors[:3]), tensors[3][:, order]]

    def difference(causal: bool) -> float:
        straight, mixed = (attention(NoPosition(SHAPE), t, context, causal=causal) for t in (tensors, permuted))
        return distance(straight[:, :, order], mixed)

    assert difference(causal=False) < 1e-12
    assert difference(causal=True) > 0.1


@every_case
def test_features_have_the_declared_width(name: str, encoding: Class, options: Options) -> None:
    made, (_, k, v, x) = build(encoding, options), draw(TIME)
    features = made.key_features(x, k, v)
    assert made.feature_width == (0 if features is None else features.shape[-1])


@every_case
def test_layers_share_what_the_paper_shares(name: str, encoding: Class, options: Options) -> None:
    first, second = (build(encoding, options, replace(SHAPE, layer=layer)) for layer in (0, 1))
    second.share(first)
    shared = {n for n, p in second.named_parameters() if any(p is q for q in first.parameters())}
    expected = {
        "absolute_learned": {"table"},
        "relative": {"table"},
        "relative_capped": {"table"},
        "t5": {"table"},
        "transformer_xl": {"u", "w"},
        "cope_relative": {"relative.table"},
    }
    assert shared == expected.get(name, set())
