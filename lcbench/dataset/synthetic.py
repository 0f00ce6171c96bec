"""Examples drawn by a task: a stream that never repeats, or a fixed set.

Example i of a set is a function of (seed, set, i) alone: the same whatever the batch size, the number of workers and
the machine, as long as the task's configuration and NumPy's generators stay the same. Examples are drawn in blocks;
block b of a set comes from Philox with key (seed, hash of the set's name) and b in the highest word of its counter,
so that no two blocks, sets or seeds share random numbers: evaluation sets are disjoint from training.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.insertion import Insertion
from lcbench.errors import ConfigurationError

#: a block holds at most this many examples, and about this many tokens
BLOCK_EXAMPLES = 1024
BLOCK_TOKENS = 2**19


class Sampler(Protocol):
    """What this module needs of a task."""

    #: see ``Task.overlapping``
    overlapping: bool

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch: ...

    def token_length(self, evaluation_set: str) -> int: ...


def generator(seed: int, name: str, block: int) -> np.random.Generator:
    """The random numbers of one block of what is called ``name``."""
    code = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    key = np.array([seed, code], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, block], np.uint64)))


class Rows(Protocol):
    """What a model is scored on: the examples of an evaluation set, in order."""

    #: what a record says of them beside scores
    counts: dict[str, int]

    def __len__(self) -> int: ...

    @property
    def positions(self) -> int:
        """In all of them, padding left out."""

    def batches(self, batch_size: int) -> Iterator[tuple[int, int]]:
        """From which row to before which a batch goes, in order; ``batch_size`` rows of a training example's length
        are as much as a batch may hold."""

    def take(self, start: int, stop: int) -> Batch:
        """Rows ``start`` to ``stop - 1``."""


class Examples:
    """The sequence of examples of one set; keeps the block it drew last.

    Args:
        task: draws them.
        seed: from 0 to 2^64 - 1.
        evaluation_set: which distribution, ``TRAIN`` included.
        count: how many there are; by default there is no end.
    """

    def __init__(self, task: Sampler, seed: int, evaluation_set: str, count: int = sys.maxsize) -> None:
        self.count = count
        self.counts: dict[str, int] = {}
        self.task = task
        self.seed = seed
        self.evaluation_set = evaluation_set
        fitting = max(1, BLOCK_TOKENS // task.token_length(evaluation_set))
        self.block_size = min(BLOCK_EXAMPLES, 2 ** (fitting.bit_length() - 1))
        self._kept: tuple[int, Batch] | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def positions(self) -> int:
        """See ``Rows.positions``: at most so many."""
        return self.count * (self.task.token_length(self.evaluation_set) - 1)

    def batches(self, batch_size: int) -> Iterator[tuple[int, int]]:
        """See ``Rows.batches``: examples of every set fit one length's batch."""
        return ((start, min(start + batch_size, self.count)) for start in range(0, self.count, batch_size))

    def take(self, start: int, stop: int) -> Batch:
        """Examples ``start`` to ``stop - 1``."""
        parts = []
        while start < stop:
            block, row = divmod(start, self.block_size)
            last = min(row + stop - start, self.block_size)
            parts.append(self._block(block).rows(row, last))
            start += last - row
        return parts[0] if len(parts) == 1 else Batch.concatenate(parts)

    def _block(self, block: int) -> Batch:
        if self._kept is None or self._kept[0] != block:
            self._kept = None  # its memory serves the next
            rng = generator(self.seed, self.evaluation_set, block)
            self._kept = block, self.task.sample(rng, self.block_size, self.evaluation_set)
        return self._kept[1]


class Synthetic:
    """Training batches that a task draws.

    Batch i is a function of i alone, so a run resumes by asking for the batch after its last. Batches are always
    full: in a fixed set the epochs follow each other without a gap, and a batch may end one and begin the next.

    Args:
        task: draws the examples.
        seed: the run's seed.
        batch_size: examples a batch.
        size: None: a stream in which no example comes twice. A number: a fixed set of so many examples, each visited
            once an epoch in an order that depends on seed and epoch; it is held in memory, in the smallest integers
            that hold its ids.
        workers: processes that draw ahead; 0 draws in this one.
    """

    carries_state = False
    #: how landmarks are put into batches; None: they have none
    insertion: Insertion | None = None
    facts: tuple[str, ...] = ()

    def __init__(
        self, task: Sampler, seed: int, batch_size: int, *, size: int | None = None, workers: int = 0
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"trainer.batch_size={batch_size} is empty; the closest that works is 1.")
        if size is not None and size < 1:
            raise ConfigurationError(f"dataset.size={size} is empty; the closest that works is 1, or null: no end.")
        if workers < 0:
            raise ConfigurationError(f"dataset.workers={workers} is negative; the closest that works is 0.")
        if not 0 <= seed < 2**64:
            raise ConfigurationError(f"seed={seed} is not between 0 and 2^64 - 1; the closest is {max(0, -seed)}.")
        self.seed = seed
        self.batch_size = batch_size
        self.size = size
        self.workers = workers
        self.examples = Examples(task, seed, TRAIN)
        self._fixed: Batch | None = None
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def overlapping(self) -> bool:
        """See ``Dataset.overlapping``."""
        return self.examples.task.overlapping

    @property
    def longest(self) -> int:
        """See ``Dataset.longest``: the last token of an example is only ever predicted."""
        return self.examples.task.token_length(TRAIN) - 1

    @property
    def reach(self) -> int:
        """See ``Dataset.reach``: nothing is carried."""
        return self.longest

    def batch(self, index: int) -> Batch:
        """The ``index``-th training batch, from 0."""
        if self.size is None:
            first = index * self.batch_size
            return self.examples.take(first, first + self.batch_size)
        rows = torch.from_numpy(self.numbers(index))
        return self._fixed_set(self.size).select(rows).map(widen)

    def numbers(self, index: int) -> np.ndarray:
        """Which examples of the stream or the fixed set batch ``index`` holds, int64 ``[batch_size]``."""
        first = index * self.batch_size
        if self.size is None:
            return np.arange(first, first + self.batch_size)
        parts = []
        stop = first + self.batch_size
        while first < stop:
            epoch, place = divmod(first, self.size)
            last = min(place + stop - first, self.size)
            parts.append(self._epoch_order(epoch, self.size)[place:last])
            first += last - place
        return np.concatenate(parts)

    def loader(self, start: int = 0, stop: int | None = None) -> Loader:
        """Batches ``start`` to ``stop - 1``, or without end; drawn by worker processes if there are any."""
        return Loader(self, start, stop)

    def _fixed_set(self, size: int) -> Batch:
        if self._fixed is None:
            step = self.examples.block_size
            blocks = [self.examples.take(i, min(i + step, size)).map(narrow) for i in range(0, size, step)]
            self._fixed = Batch.concatenate(blocks)
        return self._fixed

    def _epoch_order(self, epoch: int, size: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, generator(self.seed, "order of the training examples", epoch).permutation(size)
        return self._order[1]


class Loader:
    """Batches ``start`` to ``stop - 1`` of ``dataset``, as often as it is iterated over.

    Worker processes draw whole blocks, so that none draws what another has drawn.
    """

    def __init__(self, dataset: Synthetic, start: int, stop: int | None) -> None:
        self.dataset = dataset
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        if self.stop is None:
            raise TypeError("a stream has no length")
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[Batch]:
        if self.dataset.workers == 0:
            indices = itertools.count(self.start) if self.stop is None else range(self.start, self.stop)
            return map(self.dataset.batch, indices)
        return self._from_workers()

    def _from_workers(self) -> Iterator[Batch]:
        if self.dataset.size is not None:
            self.dataset.batch(0)  # draws the fixed set once, before there are workers to draw it each for itself
        stop = sys.maxsize if self.stop is None else self.stop
        groups = _Groups(self.dataset, self.start, stop)
        loader = DataLoader(
            groups,
            batch_size=None,
            sampler=range(self.start // groups.batches, -(-stop // groups.batches)),
            num_workers=self.dataset.workers,
            collate_fn=_unchanged,
        )
        for group in loader:
            yield from group


class _Groups(Dataset[list[Batch]]):
    """The batches that one block of examples makes, cut to ``start .. stop - 1``."""

    def __init__(self, dataset: Synthetic, start: int, stop: int) -> None:
        self.dataset = dataset
        self.start = start
        self.stop = stop
        self.batches = max(1, dataset.examples.block_size // dataset.batch_size)

    def __getitem__(self, group: int) -> list[Batch]:
        first = group * self.batches
        indices = range(max(first, self.start), min(first + self.batches, self.stop))
        return [self.dataset.batch(index) for index in indices]


def _unchanged(group: list[Batch]) -> list[Batch]:
    return group


def narrow(tensor: Tensor) -> Tensor:
    """The same integers in fewer bytes."""
    if tensor.dtype != torch.int64:
        return tensor
    for dtype in (torch.uint8, torch.int16, torch.int32):
        limits = torch.iinfo(dtype)
        if limits.min <= int(tensor.min()) and int(tensor.max()) <= limits.max:
            return tensor.to(dtype)
    return tensor


def widen(tensor: Tensor) -> Tensor:
    return tensor.long() if tensor.dtype in (torch.uint8, torch.int16, torch.int32) else tensor
