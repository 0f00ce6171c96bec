"""Scoring at any length with constant memory: examples are fed a piece at a time, and the state is handed on.

What a mechanism answers does not depend on the pieces, so the scores are those of reading each example whole. What is
kept of an example is its tokens and targets, in the smallest integers that hold them: two bytes a token, and a few
more while it is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lcbench.attention.base import State
from lcbench.cost.memory import give_back_memory, large_tensors_apart, peak_memory_bytes, reset_peak_memory
from lcbench.dataset.base import Batch
from lcbench.dataset.synthetic import Examples, narrow, widen
from lcbench.engine.tally import Tally, autocast, facts_of
from lcbench.model.base import Model, ModelState
from lcbench.objective.base import Objective
from lcbench.task.base import Task


@dataclass(frozen=True)
class Streamed:
    """
    Args:
        scores: as ``evaluation.score`` returns them.
        costs: ``seconds`` of reading one example (prefill), ``tokens_per_second`` over all examples of a batch,
            ``state_bytes`` of one example at its end, ``peak_memory_bytes`` of the process while the set was scored.
    """

    scores: dict[str, float]
    costs: dict[str, float]


def stream_score(
    model: Model,
    task: Task,
    evaluation_set: str,
    *,
    examples: int,
    batch_size: int,
    chunk: int,
    seed: int,
    device: str,
    objective: Objective,
    precision: str = "32",
    tick: Callable[[int], None] = lambda done: None,
) -> Streamed:
    """Score ``model`` on the first ``examples`` of an evaluation set, ``chunk`` tokens of a row at a time.

    Args:
        tick: called with the number of tokens done after every piece.
    """
    drawn = Examples(task, seed, evaluation_set)
    tallies: dict[str, Tally] = {}
    seconds, tokens, state_bytes = 0.0, 0, 0
    give_back_memory()
    reset_peak_memory(torch.device(device))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision), large_tensors_apart():
            for start in range(0, examples, batch_size):
                rows = range(start, min(start + batch_size, examples))
                # one at a time: all of them in full width would be several times as much
                batch = Batch.concatenate([drawn.take(row, row + 1).map(narrow) for row in rows])
                give_back_memory()
                began = time.perf_counter()
                predictions, state = _read(model, objective, batch, chunk, device, tick)
                seconds += time.perf_counter() - began
                tokens += batch.tokens.numel()
                state_bytes = max(state_bytes, state.nbytes // len(batch))
                for name, outcomes in task.outcomes(_scorable(batch), widen(predictions)).items():
                    tallies.setdefault(name, Tally()).add(outcomes)
    finally:
        model.train(was_training)
    batches = -(-examples // batch_size)
    return Streamed(
        scores={k: v for name, tally in tallies.items() for k, v in tally.record(name).items()},
        costs={
            "seconds": seconds / batches,
            "tokens_per_second": tokens / seconds,
            "state_bytes": state_bytes,
            "peak_memory_bytes": peak_memory_bytes(torch.device(device)),
        },
    )


def _scorable(batch: Batch) -> Batch:
    """``batch`` with what scores are computed from in full width; tokens are compared, which any width can."""
    return replace(replace(batch, tokens=batch.tokens[:, :0]).map(widen), tokens=batch.tokens)


def _read(
    model: Model, objective: Objective, batch: Batch, chunk: int, device: str, tick: Callable[[int], None]
) -> tuple[Tensor, ModelState]:
    """Greedy predictions ``[batch, time]`` where they are scored, 0 elsewhere, and the state at the end."""
    time = batch.tokens.shape[1]
    predictions = torch.zeros_like(batch.tokens)
    state: ModelState | None = None
    memory: State | None = None
    for start in range(0, time, chunk):
        piece = batch.times(start, start + chunk).map(widen).to(device)
        facts = facts_of(piece)
        output = model(piece.tokens, facts, state)
        state = output.state
        scores, memory = objective.predict(output, piece.tokens, facts, memory)
        if piece.scored.any():
            said = scores.argmax(-1).masked_fill(~piece.scored, 0)
            predictions[:, start : start + chunk] = said.to(predictions.dtype).to(predictions.device)
        del output, scores
        give_back_memory()
        tick(piece.tokens.numel())
    assert state is not None
    return predictions, state
