import torch

from lcbench.dataset.base import Batch


def batch(lengths: list[int]) -> Batch:
    """Rows 1, 2, 3, ... of these lengths, padded on the right with 0."""
    time = torch.arange(max(lengths))
    padding = time >= torch.tensor(lengths)[:, None]
    tokens = (time + 1).expand(len(lengths), -1).masked_fill(padding, 0)
    scored = ~padding
    return Batch(tokens, tokens + 1, scored, scored, padding, {"length": torch.tensor(lengths), "place": tokens})


def test_select_and_rows_drop_columns_of_padding() -> None:
    whole = batch([3, 5, 2, 1])
    chosen = whole.select(torch.tensor([2, 0]))
    assert chosen.tokens.tolist() == [[1, 2, 0], [1, 2, 3]]
    assert chosen.facts["length"].tolist() == [2, 3]
    assert chosen.facts["place"].tolist() == chosen.tokens.tolist()
    piece = whole.rows(2, 4)
    assert piece.tokens.tolist() == [[1, 2], [1, 0]]
    assert piece.padding is not None
    assert piece.padding.tolist() == [[False, False], [False, True]]
    assert len(piece) == 2


def test_concatenate_is_the_inverse_of_rows() -> None:
    whole = batch([3, 5, 2, 1])
    again = Batch.concatenate([whole.rows(0, 1), whole.rows(1, 3), whole.rows(3, 4)])
    assert torch.equal(again.tokens, whole.tokens)
    assert again.padding is not None
    assert whole.padding is not None
    assert torch.equal(again.padding, whole.padding)
    assert torch.equal(again.facts["place"], whole.facts["place"])


def test_rows_of_equal_length_need_no_padding() -> None:
    tokens = torch.ones(2, 3, dtype=torch.int64)
    plain = Batch(tokens, tokens, tokens > 0, tokens > 0)
    assert Batch.concatenate([plain, plain]).padding is None
    assert plain.to("cpu").tokens.shape == (2, 3)
