"""Positions: counted per document, across calls, without padding."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lcbench.attention.base import Context, Facts
from lcbench.model.base import ModelState, place


def counted(documents: list[int], padding: list[bool]) -> list[int]:
    """Positions of one row, token by token."""
    positions, count, document = [], 0, None
    for name, padded in zip(documents, padding, strict=True):
        if not padded:
            count = count if name == document else 0
            document = name
            positions.append(count)
            count += 1
        else:
            positions.append(-1)
    return positions


def place_in_pieces(
    documents: Tensor | None, padding: Tensor | None, cuts: list[int], state: ModelState | None = None
) -> tuple[Tensor, ModelState, list[Context]]:
    """Positions ``[batch, time]`` of a row cut at ``cuts``, the last state, and every call's context."""
    given_tensor = documents if documents is not None else padding
    assert given_tensor is not None
    contexts = []
    for start, stop in pairwise(cuts):
        facts = Facts(documents=documents, padding=padding).map(lambda t, a=start, b=stop: t[:, a:b])
        placement = place(given_tensor[:, start:stop], facts, state)
        contexts.append(placement.context)
        state = placement.reached
    assert state is not None
    return torch.cat([context.positions for context in contexts], 1), state, contexts


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_positions_are_those_of_a_token_by_token_count_however_the_rows_are_cut(data: st.DataObject) -> None:
    time = data.draw(st.integers(1, 12))
    rows = 3
    names = st.lists(st.integers(0, 2), min_size=time, max_size=time)
    documents = [sorted(data.draw(names)) for _ in range(rows)]
    padding = [data.draw(st.lists(st.booleans(), min_size=time, max_size=time)) for _ in range(rows)]
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, max(1, time - 1))))), time]
    cuts = sorted(set(cuts))
    positions, state, _ = place_in_pieces(torch.tensor(documents), torch.tensor(padding), cuts)
    for row in range(rows):
        expected = counted(documents[row], padding[row])
        for t in range(time):
            if not padding[row][t]:
                assert positions[row, t] == expected[t]
        read = [position for position in expected if position >= 0]
        assert state.next_position[row] == (read[-1] + 1 if read else 0)
    assert (positions >= 0).all()


def test_padding_repeats_the_position_before_it_so_that_a_table_is_never_exceeded() -> None:
    padding = torch.tensor([[True, True, False, False], [False, False, True, True], [False, False, False, False]])
    positions, state, _ = place_in_pieces(None, padding, [0, 4])
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 1, 2, 3]]
    assert state.next_position.tolist() == [2, 2, 4]
    beyond = place(torch.zeros(3, 2), Facts(padding=torch.ones(3, 2, dtype=torch.bool)), state)
    assert beyond.context.positions.tolist() == [[1, 1], [1, 1], [3, 3]]


def test_a_document_goes_on_across_the_border_of_two_calls_and_a_new_one_starts_at_zero() -> None:
    first = place(torch.zeros(2, 3), Facts(documents=torch.tensor([[1, 1, 1], [1, 2, 2]])), None)
    second = place(torch.zeros(2, 3), Facts(documents=torch.tensor([[1, 2, 2], [2, 2, 5]])), first.reached)
    assert second.context.positions.tolist() == [[3, 0, 1], [2, 3, 0]]
    assert second.starts is not None
    assert second.starts.tolist() == [[False, True, False], [False, False, True]]


def test_tokens_without_a_document_belong_to_document_zero() -> None:
    named = place(torch.zeros(2, 2), Facts(documents=torch.tensor([[0, 0], [0, 1]])), None)
    unnamed = place(torch.zeros(2, 2), None, named.reached)
    assert unnamed.context.positions.tolist() == [[2, 3], [0, 1]]
    assert unnamed.context.documents is not None


def test_a_reset_row_starts_at_zero_and_a_selected_row_goes_on() -> None:
    state = place(torch.zeros(2, 3), None, None).reached
    reset = place(torch.zeros(2, 2), None, state.reset(torch.tensor([True, False])))
    assert reset.context.positions.tolist() == [[0, 1], [3, 4]]
    reset_within = place(torch.zeros(2, 2), Facts(documents=torch.tensor([[4, 4], [0, 0]])), state)
    again = place(
        torch.zeros(2, 1),
        Facts(documents=torch.tensor([[4], [0]])),
        reset_within.reached.reset(torch.tensor([True, False])),
    )
    assert again.context.positions.tolist() == [[0], [5]]
    selected = place(torch.zeros(1, 1), None, reset.reached.select(torch.tensor([1])))
    assert selected.context.positions.tolist() == [[5]]


def test_distances_follow_from_the_buffer_until_padding_may_lie_between_tokens() -> None:
    tokens = torch.zeros(1, 2)
    padding = torch.tensor([[False, True]])
    plain = place(tokens, None, None)
    assert plain.context.consecutive
    assert place(tokens, None, plain.reached).context.consecutive
    ragged = place(tokens, Facts(padding=padding), None)
    assert ragged.context.consecutive
    assert not place(tokens, None, ragged.reached).context.consecutive
    assert not place(tokens, Facts(padding=padding), plain.reached).context.consecutive
    assert not place(tokens, Facts(padding=padding, consecutive=False), None).context.consecutive


def test_a_callers_positions_are_trusted_and_continued() -> None:
    tokens = torch.zeros(2, 3)
    context = Context(
        torch.tensor([[4, 6, 8], [1, 2, 9]]),
        padding=torch.tensor([[False] * 3, [False, False, True]]),
        consecutive=False,
    )
    placement = place(tokens, context, None)
    assert placement.context is context
    assert place(tokens[:, :1], None, placement.reached).context.positions.tolist() == [[9], [3]]


@pytest.mark.parametrize("with_facts", [False, True])
def test_nothing_is_read_from_tensors(with_facts: bool) -> None:
    with torch.device("meta"):
        tokens = torch.zeros(2, 3, dtype=torch.int64)
        facts = Facts(documents=tokens, padding=tokens > 0) if with_facts else None
        state = place(tokens, facts, None).reached
        assert place(tokens, facts, state).context.positions.shape == (2, 3)
