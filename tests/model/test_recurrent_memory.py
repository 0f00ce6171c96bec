"""Recurrent memory against its definition, and what it promises of state, documents, padding and gradients."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lcbench.attention.base import Facts
from lcbench.attention.full import Full
from lcbench.attention.sliding_window import SlidingWindow
from lcbench.engine.reading import Feeding
from lcbench.errors import ConfigurationError
from lcbench.model.decoder import Decoder
from lcbench.model.recurrent_memory import RecurrentMemory
from lcbench.position.alibi import Alibi
from lcbench.position.none import NoPosition
from lcbench.position.rope import Rope
from tests.oracles import recurrent_memory as oracle

VARIANTS: list[dict[str, Any]] = [
    {},
    {"write": "learned"},
    {"write": "learned", "accumulate": True},
]
variants = pytest.mark.parametrize("options", VARIANTS, ids=["rmt", "learned", "accumulated"])


def make(attention: Any = Full, position: Any = Rope, **options: Any) -> RecurrentMemory:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "n_heads": 2, "segment": 4, "slots": 3, **options}
    model = RecurrentMemory(11, attention, position, **sizes).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def fed(model: RecurrentMemory, tokens: Tensor, cuts: list[int], facts: Facts | None = None) -> Tensor:
    pieces, state, start = [], None, 0
    for size in cuts:
        part = facts and facts.map(lambda tensor, a=start, b=start + size: tensor[:, a:b])
        output = model(tokens[:, start : start + size], part, state)
        pieces.append(output.logits)
        state, start = output.state, start + size
    return torch.cat(pieces, 1)


@variants
def test_logits_are_those_of_the_definition(options: dict[str, Any]) -> None:
    model = make(position=NoPosition, **options)
    tokens = tokens_of(2, 14)
    chosen = {"write": "carried", "accumulate": False, **options}
    expected = [
        oracle.logits(row, model.state_dict(), segment=4, slots=3, n_layers=2, n_heads=2, **chosen) for row in tokens
    ]
    torch.testing.assert_close(model(tokens).logits, torch.stack(expected), rtol=1e-9, atol=1e-9)


@variants
@pytest.mark.parametrize("cuts", [[9, 5], [1] * 14, [4, 4, 6], [3, 1, 10]])
def test_chunks_give_the_whole_sequences_logits(options: dict[str, Any], cuts: list[int]) -> None:
    model, tokens = make(**options), tokens_of(3, 14)
    torch.testing.assert_close(fed(model, tokens, cuts), model(tokens).logits, rtol=1e-9, atol=1e-9)


@variants
@pytest.mark.parametrize("cuts", [[17], [6, 11], [1] * 17])
def test_documents_and_padding_are_read_as_if_alone(options: dict[str, Any], cuts: list[int]) -> None:
    model = make(**options)
    tokens = tokens_of(3, 17)
    documents = torch.tensor([[0] * 17, [1] * 6 + [2] * 1 + [3] * 10, [5] * 9 + [7] * 8])
    padding = torch.rand(3, 17, generator=torch.Generator().manual_seed(1)) < 0.25
    ours = fed(model, tokens, cuts, Facts(documents=documents, padding=padding, consecutive=False))
    for row, document in itertools.product(range(3), documents.unique()):
        places = ((documents[row] == document) & ~padding[row]).nonzero()[:, 0]
        if len(places):
            alone = model(tokens[row, places][None]).logits[0]
            torch.testing.assert_close(ours[row, places], alone, rtol=1e-9, atol=1e-9)


@variants
def test_a_reset_row_equals_a_fresh_start(options: dict[str, Any]) -> None:
    model, tokens = make(**options), tokens_of(2, 20)
    state = model(tokens[:, :7]).state
    after = model(tokens[:, 7:], None, state.reset(torch.tensor([True, False]))).logits
    torch.testing.assert_close(after[0], model(tokens[:1, 7:]).logits[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after[1], model(tokens[1:]).logits[0, 7:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("both_ways", [True, False])
@variants
def test_a_whole_segment_is_one_pass_with_the_gradients_of_its_parts(options: dict[str, Any], both_ways: bool) -> None:
    model, tokens = make(both_ways=both_ways, **options), tokens_of(2, 14)
    widths: list[int] = []
    model.decoder.final_norm.register_forward_hook(lambda m, x, y: widths.append(y.shape[1]))
    found = []
    for cuts in ([14], [2] * 7):
        model.zero_grad()
        fed(model, tokens, cuts).square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
        if len(cuts) == 1:
            carried = 3 if "write" not in options else 0
            assert widths[0] == carried + 4 + 3
            assert len(widths) == 4
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@variants
def test_state_bytes_is_what_the_state_holds(options: dict[str, Any]) -> None:
    model = make(**options)
    for length in (1, 3, 4, 5, 9, 13):
        state = model(tokens_of(2, length)).state
        assert state.nbytes == model.state_bytes(2, length, torch.float64)


def test_the_state_of_rmt_does_not_grow_and_an_accumulated_one_does_by_its_slots() -> None:
    sizes = {n: make().state_bytes(1, n, torch.float64) for n in (4, 400, 4000)}
    assert len(set(sizes.values())) == 1
    grown = make(write="learned", accumulate=True)
    per_slot = 8 * 8 + 8  # the vector and its place
    in_decoder = grown.decoder.state_bytes(1, 1, torch.float64) - grown.decoder.state_bytes(1, 0, torch.float64)
    added = grown.state_bytes(1, 44, torch.float64) - grown.state_bytes(1, 40, torch.float64)
    assert added == 3 * (per_slot + in_decoder)


def test_without_slots_every_segment_is_read_alone() -> None:
    model, tokens = make(slots=0), tokens_of(2, 12)
    alone = [model.decoder(part).logits for part in tokens.split(4, 1)]
    torch.testing.assert_close(model(tokens).logits, torch.cat(alone, 1))


@variants
def test_tokens_never_see_what_is_written_after_them(options: dict[str, Any]) -> None:
    model = make(**options)
    first, second = tokens_of(1, 16), tokens_of(1, 16)
    second[:, 6:] = tokens_of(1, 10, seed=5)
    assert torch.equal(model(first).logits[:, :6], model(second).logits[:, :6])


@variants
def test_memory_reaches_the_next_segment_and_its_gradient_the_one_before(options: dict[str, Any]) -> None:
    model, tokens = make(**options), tokens_of(1, 12)
    other = tokens.clone()
    other[0, 0] = (other[0, 0] + 1) % 11
    assert not torch.allclose(model(tokens).logits[:, 8:], model(other).logits[:, 8:])
    for feeding, felt in ((Feeding(), True), (Feeding(4), True), (Feeding(4, detach=True), False)):
        seen: list[Tensor] = []
        hook = model.decoder.embedding.register_forward_hook(lambda m, a, out: seen.append(out) or out.retain_grad())  # noqa: B023
        feeding(model.forward, tokens, Facts()).logits[:, 8:].square().sum().backward()
        hook.remove()
        first = seen[0].grad
        assert (first is not None and bool(first[:, :4].any())) == felt


def test_every_parameter_learns() -> None:
    for options in VARIANTS:
        model = make(**options)
        model(tokens_of(2, 12)).logits.square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_slots_are_different_vectors() -> None:
    assert len(make().start.unique(dim=0)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": 0}, "model.segment=0"),
        ({"slots": -1}, "model.slots=-1"),
        ({"accumulate": True}, "add model.write=learned"),
        ({"position": Alibi, "both_ways": True}, "position encoding reads backwards only"),
        ({"attention": SlidingWindow, "both_ways": True}, "attention reads backwards only"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(**options)


@pytest.mark.parametrize(("attention", "position"), itertools.product([Full, SlidingWindow], [Alibi, Rope]))
def test_slots_that_read_backwards_work_with_everything(attention: Any, position: Any) -> None:
    model, tokens = make(attention, position, both_ways=False), tokens_of(2, 14)
    assert isinstance(model.decoder, Decoder)
    torch.testing.assert_close(fed(model, tokens, [5, 9]), model(tokens).logits, rtol=1e-9, atol=1e-9)
