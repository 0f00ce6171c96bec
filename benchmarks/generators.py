"""Sequences a second of the task generators, beside per-example Python generators, in one process and one thread.

    python -m benchmarks.generators

Both sides end with int64 tensors of token ids. The Python side is the oracle of the task (tests/oracles), which draws
statement by statement or token by token into lists, with a dictionary from words to ids. lcbench's side is the path
that training takes: ``Synthetic.batch``. The two take turns, and medians are printed.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch

from lcbench.dataset.synthetic import Synthetic
from lcbench.task.base import Task
from lcbench.task.counting import Counting
from lcbench.task.flip_flop import FlipFlop
from lcbench.task.mqar import MQAR
from lcbench.task.passkey import Passkey
from lcbench.task.selective_copy import SelectiveCopy
from tests.oracles import counting, flip_flop, mqar, passkey, selective_copy

ROUNDS = 25
PYTHON_EXAMPLES = 100
BATCH_SIZE = 64
BATCHES = 128


def as_ids(task: Task, words: list[str]) -> torch.Tensor:
    return torch.tensor([IDS[type(task)][word] for word in words])


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


flip_flop_task = FlipFlop(length=512)
selective_copy_task = SelectiveCopy(length=769, content=256, symbols=16)
counting_task = Counting(length=512, variables=3, max_statements=512)
mqar_task = MQAR(length=512, pairs=64, vocabulary_size=8192)
passkey_task = Passkey(length=512, min_length=512)
needles_task = Passkey(length=512, min_length=512, keys=4, mentions=1)
IDS = {
    type(task): {word: token for token, word in enumerate(task.vocabulary)}
    for task in (flip_flop_task, selective_copy_task, counting_task, needles_task)
}


def cases(rng: random.Random) -> dict[str, tuple[Task, Callable[[], object]]]:
    """Per name, the task and a function that draws one example in plain Python."""

    def one_mqar() -> object:
        tokens, targets = mqar.generate(rng, 512, 64, 8192, 0.01)
        return torch.tensor(tokens), torch.tensor(targets)

    return {
        "flip_flop, 512 tokens": (
            flip_flop_task,
            lambda: as_ids(flip_flop_task, flip_flop.generate(rng, 512, 0.8)),
        ),
        "selective_copy, 256 blanks, 256 content": (
            selective_copy_task,
            lambda: as_ids(selective_copy_task, selective_copy.generate(rng, 256, 256, 16)),
        ),
        "counting, 3..512 statements, 3 variables": (
            counting_task,
            lambda: as_ids(counting_task, counting.words(*counting.generate(rng, 3, 3, 512))),
        ),
        "mqar, 512 tokens, 64 pairs": (mqar_task, one_mqar),
        "passkey, 512 tokens": (passkey_task, lambda: as_ids(passkey_task, passkey.generate(rng, 512))),
        "passkey, 512 tokens, 4 keys, stated once": (
            needles_task,
            lambda: as_ids(needles_task, passkey.generate(rng, 512, keys=4, mentions=1)),
        ),
    }


def compare(task: Task, one_example: Callable[[], object]) -> tuple[float, float]:
    """Median sequences a second of ``one_example`` and of the stream of ``task``."""
    stream = Synthetic(task, 0, BATCH_SIZE)
    indices = iter(range(ROUNDS * BATCHES))
    python, ours = [], []
    for _ in range(ROUNDS):
        python.append(PYTHON_EXAMPLES / seconds(lambda: [one_example() for _ in range(PYTHON_EXAMPLES)]))
        ours.append(BATCHES * BATCH_SIZE / seconds(lambda: [len(stream.batch(next(indices))) for _ in range(BATCHES)]))
    return statistics.median(python), statistics.median(ours)


def main() -> None:
    torch.set_num_threads(1)
    # Once a large tensor has been freed, as training does all the time, the allocator keeps memory for the next.
    torch.empty(31 * 2**20, dtype=torch.uint8).fill_(0)
    print(f"{'sequences/s':42}{'Python':>10}{'lcbench':>12}{'ratio':>8}")
    for name, (task, one_example) in cases(random.Random(0)).items():
        python, ours = compare(task, one_example)
        print(f"{name:42}{python:10,.0f}{ours:12,.0f}{ours / python:8.0f}")


if __name__ == "__main__":
    main()
