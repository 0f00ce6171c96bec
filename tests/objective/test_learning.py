"""What TRIME is for: names that a document repeats are predicted from the document's earlier segments."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from lcbench.attention.full import Full
from lcbench.dataset.base import Batch
from lcbench.dataset.segments import Segments
from lcbench.model.decoder import Decoder
from lcbench.objective.base import Step
from lcbench.objective.trime import Trime
from lcbench.position.none import NoPosition

NAMES, OWN, SEGMENT, SEGMENTS = 64, 4, 4, 8


class Names:
    """Documents of uniformly drawn names, each with 4 of the 64 of its own."""

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        own = rng.permuted(np.tile(np.arange(NAMES), (n, 1)), axis=1)[:, :OWN]
        drawn = rng.integers(0, OWN, (n, SEGMENT * SEGMENTS + 1))
        names = torch.from_numpy(np.take_along_axis(own, drawn, 1))
        everywhere = torch.ones(n, SEGMENT * SEGMENTS, dtype=torch.bool)
        return Batch(names[:, :-1], names[:, 1:], everywhere, everywhere)

    def token_length(self, evaluation_set: str) -> int:
        return SEGMENT * SEGMENTS + 1


def losses(objective: Trime, steps: int = 150) -> tuple[float, float]:
    """After training: with the memory of ``objective``, and of the words alone, on documents not seen before."""
    torch.manual_seed(0)
    model = Decoder(NAMES, Full, NoPosition, d_model=16, n_heads=2, n_layers=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    dataset = Segments(Names(), 0, 32 * SEGMENTS, tokens=SEGMENT)
    for index in range(steps):
        batch = dataset.batch(index)
        step = Step(index / steps, lambda: pytest.fail("one reading is enough"))
        optimizer.zero_grad()
        torch.stack(list(objective(model(batch.tokens), batch, step).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        batch = dataset.batch(steps)
        output = model(batch.tokens)
        last = dataclasses.replace(step, progress=0.999)
        plain = dataclasses.replace(last, progress=-1.0)
        with_memory = Trime(memory="long")(output, batch, last)["trime"]
        return with_memory.item(), Trime()(output, batch, plain)["next_token"].item()


def test_a_memory_of_the_document_beats_chance_and_what_a_segment_tells() -> None:
    trained, _ = losses(Trime(memory="long"))
    cache, plain = losses(Trime(memory="long", warmup=1.0))
    chance = math.log(NAMES)
    assert trained < 0.6 * chance
    assert trained < plain - 1
    assert trained < cache - 0.2
