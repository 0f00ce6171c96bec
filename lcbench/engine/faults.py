"""What ended a run from outside its own code, in one sentence that says what to do about it."""

from __future__ import annotations

import errno
import traceback

import torch

from lcbench.engine import evaluation
from lcbench.errors import no_room

#: how the allocators, operating system and BLAS libraries say it, where the exception's type does not
NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "bad_alloc")

REDUCE_TRAINING = "reduce trainer.batch_size (trainer.accumulate makes up for it), task.length or the model's size"
REDUCE_SCORING = "reduce evaluation.batch_size, or the lengths of the evaluation sets"


def cause_of(error: Exception) -> str | None:
    """The sentence for an exception that means a full disk or a lack of memory; None for any other."""
    if out_of_memory(error):
        scoring = any(frame.filename == evaluation.__file__ for frame in traceback.extract_tb(error.__traceback__))
        return f"out of memory {'while scoring' if scoring else 'while training'}{_wanted(error)}: " + (
            REDUCE_SCORING if scoring else REDUCE_TRAINING
        )
    return no_room(error)


def out_of_memory(error: Exception) -> bool:
    """Whether memory could not be had, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and says_no_memory(str(error))


def says_no_memory(text: str) -> bool:
    """Whether a message is that of an allocation that failed."""
    return any(words in text.lower() for words in NO_MEMORY)


def _wanted(error: Exception) -> str:
    """How much was asked for in vain, where the message says so, in its own words."""
    text = " ".join(str(error).split())
    for begin in ("you tried to allocate ", "Tried to allocate "):
        _, found, rest = text.partition(begin)
        if found:
            amount, unit = rest.split()[:2]
            return f" (another {amount} {unit.rstrip('.,')} were not to be had)"
    return ""
