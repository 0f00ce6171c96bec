from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lcbench
from lcbench.attention.base import Attention
from lcbench.attention.sparse_transformer import SparseTransformer
from lcbench.conformance import LAWS, certify, find_oracle
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape
from lcbench.position.none import NoPosition
from tests.position.harness import consecutive, distance

LENGTH = 26


def layer_of(name: str = "sparse_transformer", position: Any = "rope", n_heads: int = 2, **options: Any) -> Attention:
    torch.manual_seed(0)
    return lcbench.build_attention(name, d_model=16, n_heads=n_heads, position=position, **options).double()


def at_layer(number: int, n_heads: int = 2, **options: Any) -> SparseTransformer:
    torch.manual_seed(number)
    shape = LayerShape(16, n_heads, layer=number, n_layers=2)
    return SparseTransformer(shape, NoPosition(shape), **options).double()


def inputs(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def influence(layers: list[Attention], length: int = LENGTH) -> Tensor:
    """Which inputs each output depends on, bool ``[length, length]``."""
    x = inputs(length).requires_grad_()
    y = x
    for layer in layers:
        y = layer(y, consecutive(length)).y
    rows = [torch.autograd.grad(y[0, i].square().sum(), x, retain_graph=True)[0][0] for i in range(length)]
    return torch.stack([row.abs().sum(1) > 0 for row in rows])


def defined(pattern: str, stride: int, summaries: int, kind: int = 0, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """The sets A1 and A2 of every query as bool ``[length, length]``, by the printed definitions."""
    i, j = torch.arange(length)[:, None], torch.arange(length)
    if pattern == "strided":
        return (j <= i) & (j >= i - stride), (j <= i) & ((i - j) % stride == 0)
    last = stride - kind * summaries
    slot = j % stride
    return (j <= i) & (j // stride == i // stride), (j <= i) & (slot < last) & (slot >= last - summaries)


@pytest.mark.parametrize(
    ("pattern", "stride", "summaries"),
    [
        ("fixed", 6, 2),
        ("fixed", 13, 4),
        ("fixed", 5, 1),
        ("strided", 6, 0),
        ("strided", 7, 0),
        ("strided", 2, 0),
    ],
)
def test_the_sets_are_those_of_the_definitions(pattern: str, stride: int, summaries: int) -> None:
    """One head; merged, and each set alone, as odd and even layers have them."""
    options: dict[str, Any] = {"pattern": pattern, "stride": stride}
    if pattern == "fixed":
        options["summaries"] = summaries
    near, far = defined(pattern, stride, summaries)
    own = torch.eye(LENGTH, dtype=torch.bool)
    assert torch.equal(influence([at_layer(0, n_heads=1, **options)]), near | far)
    alone = options | {"integration": "interleaved"}
    assert torch.equal(influence([at_layer(0, n_heads=1, **alone)]), near)
    assert torch.equal(influence([at_layer(1, n_heads=1, **alone)]), far | own)


def test_keys_read_per_query() -> None:
    """On average, for n = 96: fixed (l + 1) / 2 + c (n / l - 1) / 2; strided nearly l + n / l / 2."""
    length = 96
    fixed = influence([at_layer(0, n_heads=1, stride=8, summaries=2)], length).sum().item() / length
    assert fixed == (8 + 1) / 2 + 2 * (length / 8 - 1) / 2
    strided = influence([at_layer(0, n_heads=1, stride=8, pattern="strided")], length).sum().item() / length
    assert abs(strided - (8 + length / 8 / 2)) < 1


@pytest.mark.parametrize("options", [{"stride": 6, "summaries": 2}, {"stride": 5, "pattern": "strided"}])
@pytest.mark.parametrize("integration", ["interleaved", "multi_head"])
def test_two_steps_reach_all_of_the_past_and_nothing_else(options: dict[str, Any], integration: str) -> None:
    layers: list[Attention] = [at_layer(n, integration=integration, **options) for n in range(2)]
    assert torch.equal(influence(layers), torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())
    if integration == "interleaved":
        assert not influence(layers[:1]).equal(influence(layers))


@pytest.mark.parametrize(
    "options", [{"stride": 2 * LENGTH}, {"stride": 7, "summaries": 7}, {"stride": 1, "pattern": "strided"}]
)
def test_patterns_that_leave_nothing_out_are_full_attention(options: dict[str, Any]) -> None:
    layer = layer_of(**{"summaries": 1} | options)
    full = layer_of("full")
    full.load_state_dict(layer.state_dict())
    assert distance(layer(inputs(), consecutive(LENGTH)).y, full(inputs(), consecutive(LENGTH)).y) < 1e-12


def test_heads_summarise_different_positions_and_repeat() -> None:
    """l = 8, c = 4: two kinds among four heads; those of the second are four positions further from the end."""
    layer = at_layer(0, n_heads=4, stride=8, summaries=4)
    slots = {head: group.summaries for group in layer.readers for head in group.heads}
    assert [(slots[h].start, slots[h].stop) for h in range(4)] == [(4, 8), (0, 4), (4, 8), (0, 4)]
    shared = at_layer(0, n_heads=4, stride=8, summaries=4, integration="multi_head")
    assert [group.heads for group in shared.readers] == [[0, 2], [1], [3]]


@pytest.mark.parametrize("options", [{"stride": 6, "summaries": 2}, {"stride": 4, "pattern": "strided"}])
def test_the_second_layer_is_certified_too(options: dict[str, Any]) -> None:
    """Interleaved, it is another mechanism than the first: the second set alone."""
    oracle, defaults = find_oracle("sparse_transformer"), {"pattern": "fixed", "summaries": 2}
    assert oracle is not None

    def row(i: int, q: Tensor, k: Tensor, v: Tensor, head: int, **_: Any) -> Tensor:
        return q[i] @ k[: i + 1].T * q.shape[-1] ** -0.5

    def literal(x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor) -> Tensor:
        told = defaults | options | {"integration": "interleaved", "layer": 1}
        return oracle.forward(x, weights, positions, landmarks, row=row, n_heads=2, **told)

    laws = {
        "agrees_with_its_oracle",
        "chunk_invariance",
        "chunk_invariance_of_the_state",
        "state_bytes",
        "causality",
        "documents_equal_each_alone",
        "padded_rows_equal_unpadded",
        "state_resets_rows",
    }
    certificate = certify(
        lambda: at_layer(1, integration="interleaved", **options).float(),
        laws=tuple(law for law in LAWS if law.__name__ in laws),
        oracle=literal,
    )
    assert certificate.passed, [(check.name, check.detail) for check in certificate.checks if check.passed is False]


def test_a_triangle_inside_diagonal_blocks_only_leaks() -> None:
    """Masked block by block, a query sees the summaries of its own block before they are there."""
    stride, summaries = 6, 2
    near, far = defined("fixed", stride, summaries)
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    by_block = near | (j // stride <= i // stride) & (j % stride >= stride - summaries)
    x, changed = inputs(), inputs()
    changed[:, 11] += 1  # a summary, the last of its block

    def before(mask: Tensor | None) -> Tensor:
        layer = at_layer(0, n_heads=1, stride=stride, summaries=summaries)

        def read(x: Tensor) -> Tensor:
            if mask is None:
                return layer(x, consecutive(LENGTH)).y
            q, keys = layer.project(x, consecutive(LENGTH))
            return layer.merge(torch.nn.functional.scaled_dot_product_attention(q, keys.k, keys.v, attn_mask=mask))

        return (read(changed) - read(x))[:, :11].abs().max()

    assert before(by_block) > 1e-3
    assert before(near | far) == 0
    assert before(None) < 1e-12


def test_the_fixed_patterns_state_is_a_block_and_summaries() -> None:
    layer = at_layer(0, n_heads=1, stride=8, summaries=2)
    state = layer(inputs(203), consecutive(203)).state
    assert state.near[0].length == 7
    assert state.summaries[0].length == 2 * (203 // 8)
    strided = at_layer(0, n_heads=1, stride=8, pattern="strided")
    assert strided(inputs(203), consecutive(203)).state.near[0].length == 203


@pytest.mark.parametrize(
    ("options", "n_heads", "position", "says"),
    [
        ({"stride": 0}, 2, "rope", "attention.stride=1"),
        ({"stride": 8, "summaries": 9}, 2, "rope", "attention.summaries=8"),
        ({"stride": 8, "summaries": 0}, 2, "rope", "attention.summaries=1"),
        ({"integration": "multi_head"}, 1, "rope", "model.n_heads=2"),
        ({}, 2, {"name": "cope", "p_max": 4}, "position Cope"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], n_heads: int, position: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        layer_of(n_heads=n_heads, position=position, **options)
