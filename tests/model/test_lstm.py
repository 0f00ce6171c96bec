"""The LSTM against its equations, and what it promises of state, documents and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lcbench.attention.base import Facts
from lcbench.errors import ConfigurationError
from lcbench.model.lstm import LSTM


def make(**options: Any) -> LSTM:
    torch.manual_seed(0)
    return LSTM(11, **{"d_model": 6, "n_layers": 2, **options}).double().eval()


def literal(model: LSTM, tokens: Tensor) -> Tensor:
    """Logits ``[time, vocabulary]`` of one row, gate by gate."""
    weights = model.state_dict()
    d_model = model.lstm.hidden_size
    h = [torch.zeros(d_model, dtype=torch.float64) for _ in range(model.lstm.num_layers)]
    c = [torch.zeros(d_model, dtype=torch.float64) for _ in range(model.lstm.num_layers)]
    logits = []
    for token in tokens:
        x = weights["embedding.weight"][token]
        for layer in range(model.lstm.num_layers):
            gates = (
                weights[f"lstm.weight_ih_l{layer}"] @ x
                + weights[f"lstm.bias_ih_l{layer}"]
                + weights[f"lstm.weight_hh_l{layer}"] @ h[layer]
                + weights[f"lstm.bias_hh_l{layer}"]
            )
            i, f, g, o = gates.chunk(4)
            c[layer] = torch.sigmoid(f) * c[layer] + torch.sigmoid(i) * torch.tanh(g)
            h[layer] = torch.sigmoid(o) * torch.tanh(c[layer])
            x = h[layer]
        logits.append(weights["output.weight"] @ x)
    return torch.stack(logits)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_equations(tied: bool) -> None:
    model = make(tie_embeddings=tied)
    tokens = torch.randint(11, (2, 7))
    torch.testing.assert_close(model(tokens).logits, torch.stack([literal(model, row) for row in tokens]))
    assert (model.output.weight is model.embedding.weight) == tied


@pytest.mark.parametrize("cuts", [[4, 3], [1] * 7])
def test_chunks_of_any_size_give_the_whole_sequences_logits(cuts: list[int]) -> None:
    model = make()
    tokens = torch.randint(11, (3, 7))
    pieces, state = [], None
    for chunk in tokens.split(cuts, 1):
        output = model(chunk, state=state)
        pieces.append(output.logits)
        state = output.state
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens).logits)


def test_packed_documents_are_read_as_if_alone_across_the_border_of_two_calls() -> None:
    model = make()
    first, second = torch.randint(11, (1, 3)), torch.randint(11, (1, 5))
    packed, documents = torch.cat([first, second], 1), torch.tensor([[7] * 3 + [9] * 5])
    pieces, state = [], None
    for tokens, names in zip(packed.split(5, 1), documents.split(5, 1), strict=True):
        output = model(tokens, Facts(documents=names), state)
        pieces.append(output.logits)
        state = output.state
    torch.testing.assert_close(torch.cat(pieces, 1), torch.cat([model(first).logits, model(second).logits], 1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_even_when_the_sequence_goes_on_after_it(side: str) -> None:
    model = make()
    tokens, further = torch.randint(11, (1, 4)), torch.randint(11, (1, 3))
    pads = torch.zeros(1, 2, dtype=torch.int64)
    padded = torch.cat([pads, tokens] if side == "left" else [tokens, pads], 1)
    own = slice(2, 6) if side == "left" else slice(0, 4)
    padding = torch.ones(1, 6, dtype=torch.bool)
    padding[:, own] = False
    first = model(padded, Facts(padding=padding))
    second = model(further, state=first.state)
    whole = model(torch.cat([tokens, further], 1)).logits
    torch.testing.assert_close(torch.cat([first.logits[:, own], second.logits], 1), whole)


def test_state_is_returned_not_changed_and_rows_can_be_reset_and_selected() -> None:
    model = make()
    tokens, further = torch.randint(11, (2, 4)), torch.randint(11, (2, 3))
    state = model(tokens).state
    before = state.map(torch.clone)
    expected = model(further, state=state).logits
    assert torch.equal(state.layers[0].h, before.layers[0].h)  # type: ignore[union-attr]
    reset = model(further, state=state.reset(torch.tensor([True, False]))).logits
    torch.testing.assert_close(reset[0], model(further).logits[0])
    torch.testing.assert_close(reset[1], expected[1])
    swapped = model(further.flip(0), state=state.select(torch.tensor([1, 0]))).logits
    torch.testing.assert_close(swapped.flip(0), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_bytes_do_not_grow(dtype: torch.dtype) -> None:
    model = make().to(dtype)
    for length in (1, 9):
        assert model(torch.randint(11, (3, length))).state.nbytes == model.state_bytes(3, length, dtype)
    assert model.state_bytes(3, 1, dtype) == model.state_bytes(3, 10**6, dtype)


def test_it_learns_to_keep_a_bit_over_any_distance() -> None:
    """Each row: a bit, then blanks; the bit is asked for at every place after."""
    torch.manual_seed(0)
    model = LSTM(3, d_model=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        bits = torch.randint(2, (32, 1))
        tokens = torch.cat([bits, torch.full((32, 15), 2)], 1)
        loss = torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), bits.expand(-1, 16).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bits = torch.tensor([[0], [1]])
    tokens = torch.cat([bits, torch.full((2, 63), 2)], 1)
    assert torch.equal(model(tokens).logits.argmax(-1), bits.expand(-1, 64))


def test_a_mistake_is_one_sentence_with_the_closest_choice() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.n_layers=0 .* model\.n_layers=1\.$"):
        make(n_layers=0)
