"""Landmark attention: what the conformance suite does not say of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import lcbench
from lcbench.attention.base import Attention, Context
from lcbench.attention.landmark import grouped_softmax
from lcbench.conformance import oracle_of
from lcbench.conformance.subject import piece
from lcbench.errors import ConfigurationError

BLOCK = 5
TIME = 40


def layer(position: str = "rope", name: str = "landmark", **options: Any) -> Attention:
    torch.manual_seed(0)
    made = lcbench.build_attention(name, d_model=16, n_heads=2, position=position, **options)
    return made.double().eval()


def inputs(time: int = TIME) -> Tensor:
    return torch.randn(1, time, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def regular(time: int = TIME) -> Context:
    positions = torch.arange(time)[None]
    return Context(positions=positions, landmarks=positions % (BLOCK + 1) == BLOCK)


def added_at(module: torch.nn.Module, times: Tensor) -> Any:
    """From now on, ``module`` returns something else at ``times`` (bool ``[time]``)."""
    return module.register_forward_hook(lambda _, __, y: y + 3 * times[None, :, None])


def changed(ours: Attention, module: torch.nn.Module, times: Tensor) -> list[int]:
    """Queries whose output depends on what ``module`` returns at ``times``."""
    x, context = inputs(), regular()
    before = ours(x, context).y
    hook = added_at(module, times)
    after = ours(x, context).y
    hook.remove()
    return ((after - before).abs().amax(-1)[0] > 1e-9).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("options", [{}, {"k": 1, "window": 7}])
@pytest.mark.parametrize("landmarks", [None, torch.zeros(1, TIME, dtype=torch.bool)])
def test_without_landmarks_it_is_full_attention(options: dict[str, Any], landmarks: Tensor | None) -> None:
    ours, full = layer(**options), layer(name="full")
    full.load_state_dict(ours.state_dict())
    context = Context(positions=torch.arange(TIME)[None], landmarks=landmarks)
    torch.testing.assert_close(ours(inputs(), context).y, full(inputs(), context).y)


def test_a_landmark_that_scores_the_log_sum_exp_of_its_block_makes_plain_softmax() -> None:
    scores = torch.randn(3, 4, 6, dtype=torch.float64)  # [rows, pieces, width]
    scores[..., -1] = torch.finfo(torch.float64).min
    own = torch.tensor([False, False, False, True])
    inner, outer = grouped_softmax(scores, scores[..., :-1].logsumexp(-1), own)
    plain = torch.softmax(scores.flatten(1), -1).unflatten(1, (4, 6))
    torch.testing.assert_close(inner * outer[..., None], plain)


def test_a_block_far_below_the_others_does_not_vanish() -> None:
    """Its tokens are compared among themselves, so that no sum of their exponentials is zero."""
    scores = torch.zeros(2, 6)
    scores[0] = -1e4
    scores[:, -1] = torch.finfo(torch.float32).min
    inner, outer = grouped_softmax(scores, torch.tensor([0.0, 0.0]), torch.tensor([False, True]))
    torch.testing.assert_close(inner[0, :-1], torch.full((5,), 0.2))
    torch.testing.assert_close((inner * outer[..., None]).sum(), torch.tensor(1.0))


@pytest.mark.parametrize("options", [{}, {"k": 2, "window": 7}])
def test_the_value_of_a_landmark_is_never_read(options: dict[str, Any]) -> None:
    ours, context = layer(**options), regular()
    assert context.landmarks is not None
    assert changed(ours, ours.v, context.landmarks[0]) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, 3])
def test_the_key_of_a_landmark_is_read_by_later_blocks_only(number: int) -> None:
    ours, place = layer(), number * (BLOCK + 1) + BLOCK
    at = torch.arange(TIME) == place
    assert changed(ours, ours.k, at) == list(range(place + 1, TIME))  # type: ignore[arg-type]


@pytest.mark.parametrize("position", ["none", "rope", "alibi", "t5"])
def test_retrieving_every_block_where_it_is_equals_training(position: str) -> None:
    ours = layer(position, k=10, window=7, block=BLOCK, stingy=False)
    expected = ours.train()(inputs(), regular()).y
    ours.eval()
    state, parts = None, []
    for start in range(0, TIME, 9):
        output = ours(inputs()[:, start : start + 9], piece(regular(), start, start + 9), state)
        parts.append(output.y)
        state = output.state
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_one_window_equals_training() -> None:
    ours = layer(k=1, window=TIME, block=BLOCK)
    torch.testing.assert_close(ours(inputs(), regular()).y, ours.train()(inputs(), regular()).y)


@pytest.mark.parametrize("alike", [False, True])
def test_only_k_blocks_before_the_window_are_read(alike: bool) -> None:
    ours = layer(k=2, window=6, block=BLOCK, retrieval="per_token" if alike else "per_head_and_token")
    values = []
    ours.v.register_forward_hook(lambda _, __, y: values.append(y))  # type: ignore[union-attr, operator]
    x = inputs().requires_grad_()
    ours.output = torch.nn.Identity()
    y = ours(x, regular()).y[0, -1]
    read = []
    for head in (y[:8], y[8:]):
        (gradient,) = torch.autograd.grad(head.sum(), values[0], retain_graph=True)
        blocks = gradient[0, :36].abs().sum(-1).view(6, BLOCK + 1).sum(1)
        read.append(blocks.nonzero()[:, 0].tolist())
    assert [len(blocks) for blocks in read] == [2, 2]
    assert not alike or read[0] == read[1]


def test_stingy_positions_stay_those_of_a_short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = layer(k=2, window=9, block=BLOCK)
    seen = []
    rotate = ours.position.rotate

    def watched(q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(q_positions)
        return rotate(q, k, q_positions, k_positions)

    monkeypatch.setattr(ours.position, "rotate", watched)
    ours(inputs(200), regular(200))
    assert max(int(positions.max()) for positions in seen if positions.numel()) < 3 * (BLOCK + 1) + 9 + BLOCK


def irregular(kind: str) -> Tensor:
    """Places of landmarks, bool ``[time]``."""
    landmarks = torch.zeros(TIME, dtype=torch.bool)
    if kind == "first token and neighbours":
        landmarks[[0, 6, 7, 8, 15]] = True
    elif kind == "blocks of any size and a long rest":
        landmarks[[2, 4, 9, 10, 14]] = True
    else:
        landmarks[[20, 21]] = True
    return landmarks


@pytest.mark.parametrize("options", [{}, {"k": 2, "window": 6}, {"k": 1, "window": 4, "stingy": False}])
@pytest.mark.parametrize("kind", ["first token and neighbours", "blocks of any size and a long rest", "empty block"])
def test_landmarks_anywhere(kind: str, options: dict[str, Any]) -> None:
    complete: dict[str, Any] = {
        "k": None,
        "window": 250,
        "block": 20,
        "retrieval": "per_head_and_token",
        "stingy": True,
    } | options
    rope = {"base": 10000.0, "pairing": "interleaved", "channels": None}
    oracle: Callable[..., Any] | None = oracle_of(
        "landmark", "rope", n_heads=2, attention_options=complete, position_options=rope
    )
    assert oracle is not None
    ours, landmarks = layer(**complete), irregular(kind)
    positions = torch.arange(TIME)
    weights = {name: p.detach() for name, p in ours.named_parameters()}
    expected, _ = oracle(inputs()[0], weights, positions, landmarks)
    context = Context(positions=positions[None], landmarks=landmarks[None])
    for cuts in ([0, TIME], [0, 7, 8, 22, TIME], list(range(TIME + 1))):
        state, parts = None, []
        for start, stop in pairwise(cuts):
            output = ours(inputs()[:, start:stop], piece(context, start, stop), state)
            state = output.state
            parts.append(output.y[0])
        torch.testing.assert_close(torch.cat(parts), expected)


def test_it_says_how_far_away_retrieved_blocks_are() -> None:
    # windows 0 .. 11 and 12 .. 17: the second retrieves blocks that end at 5 and 11
    measures = layer(k=2, window=12, block=BLOCK)(inputs(18), regular(18)).measures
    expected = sum((i - 5) + (i - 11) for i in range(12, 18)) / 12
    torch.testing.assert_close(measures["retrieval_distance"], torch.full((2,), expected, dtype=torch.float64))
    assert layer(k=2, window=12, block=BLOCK)(inputs(12), regular(12)).measures == {}


@pytest.mark.parametrize(
    ("position", "options", "words"),
    [
        ("rope", {"k": 0}, "attention.k=1"),
        ("rope", {"block": 0}, "attention.block=1"),
        ("rope", {"window": 0}, "attention.window=1"),
        ("cope", {"k": 2}, "position=rope"),
        ("absolute_sinusoidal", {"k": 2}, "attention.stingy=false"),
    ],
)
def test_impossible_combinations_are_refused(position: str, options: dict[str, Any], words: str) -> None:
    chosen = {"name": "cope", "p_max": 8} if position == "cope" else position
    with pytest.raises(ConfigurationError, match=words):
        lcbench.build_attention("landmark", d_model=16, n_heads=2, position=chosen, **options)


def test_a_block_that_fits_no_slot_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"attention\.block=5\.$"):
        layer(k=1, window=6, block=4)(inputs(), regular())
