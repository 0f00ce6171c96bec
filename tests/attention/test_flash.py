"""One softmax put together from parts: normalisers and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues
from lcbench.attention.flash import Flash, flash_backward
from lcbench.attention.reach import Window
from lcbench.attention.scoring import attend, attend_part
from lcbench.composition import compose
from lcbench.construction import construct
from lcbench.position.base import LayerShape, PositionEncoding

HEADS, TIME, WIDTH = 3, 13, 8


def qkv(time: int = TIME) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(2, HEADS, time, WIDTH, dtype=torch.float64, generator=generator) for _ in range(3))
    return tuple(tensor.requires_grad_() for tensor in made)


def literal(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    scores = (torch.matmul(q, k.mT) * WIDTH**-0.5).masked_fill(hidden, -torch.inf)
    return torch.matmul(scores.softmax(-1), v), scores.logsumexp(-1)


@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_gives_the_normaliser_with_its_gradient(masked: bool) -> None:
    hidden = torch.ones(TIME, TIME, dtype=torch.bool).triu(1)
    mask = torch.zeros(TIME, TIME, dtype=torch.float64).masked_fill(hidden, -torch.inf)[None, None]
    given = qkv()
    ours, theirs = Flash.apply(*given, not masked, mask if masked else None), literal(*given, hidden)
    weight = [torch.randn(each.shape, dtype=torch.float64) for each in theirs]
    found, expected = (torch.autograd.grad(pair, given, weight) for pair in (ours, theirs))
    for a, b in zip((*ours, *found), (*theirs, *expected), strict=True):
        torch.testing.assert_close(a, b)


def test_parts_of_the_gradient_add_up() -> None:
    """Given the output and normaliser of the whole, the backward pass over some keys is their share."""
    q, k, v = qkv()
    hidden = torch.zeros(TIME, TIME, dtype=torch.bool)
    o, normaliser = literal(q, k, v, hidden)
    d_o = torch.randn_like(o)
    expected = torch.autograd.grad(o, (q, k, v), d_o)
    with torch.no_grad():
        parts = [
            flash_backward(d_o, q, k_part, v_part, o, normaliser, False)
            for k_part, v_part in zip(k.split(5, 2), v.split(5, 2), strict=True)
        ]
    torch.testing.assert_close(sum(part[0] for part in parts), expected[0])
    for n in (1, 2):
        torch.testing.assert_close(torch.cat([part[n] for part in parts], 2), expected[n])


def encoding(name: str) -> PositionEncoding:
    torch.manual_seed(0)
    config = compose(["attention=full", f"position={name}"]).config["position"]
    return construct(config, LayerShape(HEADS * WIDTH, HEADS)).double()


@pytest.mark.parametrize("name", ["none", "rope", "alibi", "t5", "relative", "cope"])
@pytest.mark.parametrize("situation", ["causal", "window", "documents", "padding"])
def test_two_parts_are_one_softmax(name: str, situation: str) -> None:
    """The keys of earlier and of later tokens read apart, and mixed by their normalisers; CoPE counts what is visible,
    and so is compared over one part."""
    position, (q, k, v) = encoding(name), qkv()
    positions = torch.arange(TIME).repeat(2, 1)
    documents = positions // 6 if situation == "documents" else None
    padding = (positions % 5 == 2) if situation == "padding" else None
    context = Context(positions, documents=documents, padding=padding, consecutive=padding is None)
    reach = Window(4) if situation == "window" else None
    whole = attend(q, context, KeyValues.of(k, v, None, context), position, reach=reach)
    hide = torch.zeros_like(positions, dtype=torch.bool) if padding is None else padding
    split = hide if name == "cope" else hide | (positions < 4)
    rest = [] if name == "cope" else [hide | (positions >= 4)]
    parts = []
    for hidden in (split, *rest):
        some = Context(positions, documents=documents, padding=hidden, consecutive=padding is None)
        keys = KeyValues.of(k, v, None, some)
        parts.append(attend_part(q, context, keys, position, reach=reach))
    o, normaliser = (torch.stack(each) for each in zip(*parts, strict=True))
    seen = normaliser > -torch.inf
    alpha = normaliser.masked_fill(~seen.any(0), 0).softmax(0).masked_fill(~seen, 0)
    mixed = (alpha[..., None] * o).sum(0)
    keep = ~hide[:, None, :, None].expand_as(mixed)
    torch.testing.assert_close(mixed[keep], whole[keep])
    learned = [p for p in position.parameters() if p.requires_grad]
    weight = torch.randn(whole[keep].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found, expected = (
        torch.autograd.grad(
            (each[keep] * weight).sum(), [q, k, v, *learned], materialize_grads=True, allow_unused=True
        )
        for each in (mixed, whole)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["alibi", "t5", "transformer_xl"])
@pytest.mark.parametrize("consecutive", [True, False])
def test_an_encoding_of_some_heads_is_the_same_encoding(name: str, consecutive: bool) -> None:
    position, (q, k, v) = encoding(name), qkv()
    context = Context(torch.arange(TIME).repeat(2, 1), consecutive=consecutive)
    whole = attend(q, context, KeyValues.of(k, v, None, context), position)
    for heads in (slice(0, None, 2), slice(1, None, 2)):
        some = KeyValues.of(k[:, heads], v[:, heads], None, context)
        o = attend(q[:, heads], context, some, position.of_heads(heads))
        torch.testing.assert_close(o, whole[:, heads])
        gradient = torch.autograd.grad(o.sum(), next(p for p in (*position.parameters(), q) if p.requires_grad))[0]
        assert gradient.any()
