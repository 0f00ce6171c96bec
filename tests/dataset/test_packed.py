"""Packing: BM25 by its definition, every example once an epoch, alike ones together, all of it by seed and index."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lcbench.dataset.base import Batch
from lcbench.dataset.bm25 import counts, nearest, weighted
from lcbench.dataset.packed import Packed
from lcbench.dataset.synthetic import Synthetic
from lcbench.errors import ConfigurationError
from lcbench.task.counting import Counting
from lcbench.task.flip_flop import FlipFlop
from tests.oracles import bm25 as oracle


class Topics:
    """Strings over 40 words, 10 of each of four topics, with ``length`` drawn words."""

    length = 12

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        topics = rng.integers(0, 4, (n, 1))
        tokens = torch.from_numpy(topics * 10 + rng.integers(0, 10, (n, self.length)))
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        return Batch(tokens, tokens, everywhere, everywhere)

    def token_length(self, evaluation_set: str) -> int:
        return self.length + 1


def test_scores_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(9, (7, 6), generator=generator)
    padding = torch.arange(6) >= torch.randint(1, 7, (7, 1), generator=generator)
    documents = [row[~hidden].tolist() for row, hidden in zip(tokens, padding, strict=True)]
    frequencies = counts(tokens, padding, 11)
    ours = (frequencies.to_dense() @ weighted(frequencies).to_dense().T).double()
    theirs = torch.tensor([oracle.scores(documents, query) for query in documents], dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    found = nearest(frequencies, 3)
    for document in range(7):
        assert document not in found[document]
        best = sorted((theirs[document, other].item() for other in range(7) if other != document), reverse=True)[:3]
        assert theirs[document, found[document]].tolist() == pytest.approx(best, rel=1e-5)


def test_every_example_comes_once_an_epoch_with_its_own_number() -> None:
    task = Counting(length=24)
    dataset, plain = Packed(task, 2, 4, size=20), Synthetic(task, 2, 20, size=20)
    examples = {int(n): plain.batch(0).tokens[row] for row, n in enumerate(plain.numbers(0))}
    for epoch in range(3):
        seen = []
        for index in range(epoch * 5, epoch * 5 + 5):
            batch = dataset.batch(index)
            for row, number in enumerate(batch.facts["document"].tolist()):
                seen.append(number)
                kept = slice(None) if batch.padding is None else ~batch.padding[row]
                tokens = batch.tokens[row, kept]
                assert torch.equal(tokens, examples[number][: len(tokens)])
        assert sorted(seen) == list(range(20))


def test_a_batch_is_a_function_of_seed_and_index() -> None:
    one, other, again = (Packed(Topics(), seed, 8, size=64) for seed in (5, 6, 5))
    late = again.batch(19)
    assert torch.equal(late.facts["document"], one.batch(19).facts["document"])
    assert torch.equal(one.batch(3).facts["document"], again.batch(3).facts["document"])
    assert not torch.equal(one.batch(3).facts["document"], other.batch(3).facts["document"])
    assert not torch.equal(one.batch(3).facts["document"], one.batch(3 + 8).facts["document"])


def test_a_batch_is_a_chain_of_the_nearest() -> None:
    """Whatever is appended is the first unused among the nearest of the last, batch by batch as they were packed."""
    dataset = Packed(Topics(), 0, 8, size=64, nearest=5)
    chain = list(dataset._chains(list(range(63, -1, -1))))
    used: set[int] = set()
    for place, example in enumerate(chain):
        if place % 8 == 0:
            assert example == max(set(range(64)) - used)
        else:
            unused = [n for n in dataset._near(64)[chain[place - 1]].tolist() if n not in used]
            assert example == (unused[0] if unused else max(set(range(64)) - used))
        used.add(example)


def test_examples_that_share_words_come_together() -> None:
    def alike(dataset: Synthetic) -> float:
        """The share of pairs in a batch that have one topic."""
        topics = torch.stack([dataset.batch(index).tokens[:, 0] // 10 for index in range(32)])
        return (topics[:, :, None] == topics[:, None]).float().mean().item()

    assert alike(Packed(Topics(), 0, 8, size=256)) > 0.8
    assert alike(Synthetic(Topics(), 0, 8, size=256)) < 0.5


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"dataset.size=30 .* dataset.size=32"):
        Packed(FlipFlop(length=16), 0, 8, size=30)
    with pytest.raises(ConfigurationError, match="closest that works is 1"):
        Packed(FlipFlop(length=16), 0, 8, size=32, nearest=0)
