"""What every way of scoring shares."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from lcbench.attention.base import CrossBatch, Facts, State
from lcbench.dataset.base import Batch
from lcbench.model.base import MOST_LOGITS, ModelOutput
from lcbench.objective.base import Objective

#: makes of scores ``[batch, time, vocabulary]`` and targets ``[batch, time]`` what is kept of them, ``[batch, time]``
Judge = Callable[[Tensor, Tensor], Tensor]


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """The forward pass's number format."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()


def facts_of(batch: Batch) -> Facts:
    """What a model must know of a batch beyond its tokens."""
    crossbatch = None if batch.crossbatch is None else tuple(CrossBatch(*pair) for pair in batch.crossbatch)
    return Facts(padding=batch.padding, landmarks=batch.landmarks, documents=batch.documents, crossbatch=crossbatch)


def judged(
    output: ModelOutput, objective: Objective, batch: Batch, judge: Judge, memory: State | None
) -> tuple[Tensor, State | None]:
    """What ``judge`` makes of the scores at every position, ``[batch, time]``, and the objective's memory.

    Scores are made of a slice of time after another: all at once they would be most of the memory.
    """
    rows, time = batch.tokens.shape
    size = max(1, MOST_LOGITS // (rows * output.vocabulary_size))
    parts = []
    for start in range(0, time, size):
        piece = batch.times(start, start + size) if size < time else batch
        part = output.times(start, start + size) if size < time else output
        scores, memory = objective.predict(part, piece.tokens, facts_of(piece), memory)
        parts.append(judge(scores, piece.targets))
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)), memory
