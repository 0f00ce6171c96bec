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
from lcbench.dataset.synthetic import narrow, widen
from lcbench.engine.generation import Reader, prompts_of, speak, without_landmarks
from lcbench.engine.tally import Judge, autocast, facts_of, judged
from lcbench.model.base import Model, ModelState
from lcbench.objective.base import Objective
from lcbench.task.base import Task
from lcbench.task.tally import Tally


@dataclass(frozen=True)
class Streamed:
    """
    Args:
        scores: as ``evaluation.score`` returns them.
        costs: ``seconds`` of reading one example (prefill), ``tokens_per_second`` over all examples of a batch,
            ``state_bytes`` of one example at its end, ``peak_memory_bytes`` of the process while the set was scored.
            Where the model answers by itself, the first three are of the prompt.
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
    tally: Tally | None = None,
) -> Streamed:
    """Score ``model`` on the first ``examples`` of an evaluation set, ``chunk`` tokens of a row at a time.

    Args:
        tick: called with the number of tokens done after every piece.
        tally: what counts them; None: a new one.
    """
    drawn, tally = task.rows(evaluation_set, examples, seed), tally or task.tally(evaluation_set)
    spoken = task.spoken(evaluation_set)
    seconds, tokens, state_bytes = 0.0, 0, 0
    batches = 0
    give_back_memory()
    reset_peak_memory(torch.device(device))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision), large_tensors_apart():
            for start, stop in drawn.batches(batch_size):
                # one at a time: all of them in full width would be several times as much
                batch = Batch.concatenate([drawn.take(row, row + 1).map(narrow) for row in range(start, stop)])
                give_back_memory()
                state: ModelState | None
                began = time.perf_counter()
                if spoken is None:
                    values, state = read_in_pieces(model, objective, batch, task.judge, chunk, device, tick)
                    seconds += time.perf_counter() - began
                    tokens += batch.tokens.numel()
                else:
                    batch = without_landmarks(batch, task.insertion)
                    reader = Reader(model, objective, task.insertion, device, chunk)
                    prompts, padding = prompts_of(batch)
                    scores, state = reader.read(prompts, padding, tick), reader.state
                    seconds += time.perf_counter() - began
                    tokens += prompts.numel()
                    values = speak(reader, scores, spoken).to(batch.tokens.device)
                assert state is not None
                batches += 1
                state_bytes = max(state_bytes, state.nbytes // len(batch))
                tally.add(_scorable(batch), widen(values))
    finally:
        model.train(was_training)
    return Streamed(
        scores=tally.record(),
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


def read_in_pieces(
    model: Model,
    objective: Objective,
    batch: Batch,
    judge: Judge,
    chunk: int,
    device: str,
    tick: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, ModelState]:
    """What ``judge`` makes of the scores where they are scored, 0 elsewhere, ``[batch, time]``, and the last state.

    Args:
        chunk: tokens of a row that are fed at a time, with the state handed on.
        tick: called with the number of tokens done after every piece.
    """
    time = batch.tokens.shape[1]
    parts = []
    state: ModelState | None = None
    memory: State | None = None
    for start in range(0, time, chunk):
        piece = batch.times(start, start + chunk).map(widen).to(device)
        output = model(piece.tokens, facts_of(piece), state)
        state = output.state
        values, memory = judged(output, objective, piece, judge, memory)
        parts.append(narrow(values.masked_fill(~piece.scored, 0)).to(batch.tokens.device))
        del output, values
        give_back_memory()
        tick(piece.tokens.numel() if piece.padding is None else int((~piece.padding).sum()))
    assert state is not None
    return torch.cat(parts, 1), state
