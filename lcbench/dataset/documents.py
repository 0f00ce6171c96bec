"""The training documents of a corpus one after another, in another random order every epoch."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lcbench.corpus.documents import Documents
from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.insertion import Insertion
from lcbench.dataset.synthetic import Sampler, generator
from lcbench.errors import ConfigurationError


class Text(Sampler, Protocol):
    """What datasets that arrange documents need of a task."""

    #: inputs of a row
    length: int
    #: the id that stands before a document; None: none does
    begin: int | None

    @property
    def documents(self) -> Documents: ...

    def numbers(self, part: str) -> NDArray[np.int64]: ...


class Reel:
    """All training documents one after another, each after the token that begins it, if there is one. Its order is a
    function of seed and epoch alone.

    Args:
        task: whose documents they are.
        seed: the run's seed.
    """

    def __init__(self, task: Text, seed: int) -> None:
        self.documents = task.documents
        self.numbers = task.numbers(TRAIN)
        self.begin = task.begin
        self.lengths = self.documents.lengths[self.numbers] + (task.begin is not None)
        self.seed = seed
        self.total = int(self.lengths.sum())
        self._kept: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def stretch(self, epoch: int, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens ``start`` to ``start + count - 1`` of an epoch, and the document of each, from 1 in the epoch's
        order; both ``[count]``."""
        order, ends = self._order(epoch)
        ids, documents = np.empty(count, np.int64), np.empty(count, np.int64)
        place, done = int(np.searchsorted(ends, start, side="right")), 0
        while done < count:
            skip = start + done - (int(ends[place]) - int(self.lengths[order[place]]))
            documents[done:] = place + 1
            if self.begin is not None:
                if skip == 0:
                    ids[done] = self.begin
                    done, skip = done + 1, 1
                skip -= 1
            part = self.documents.of(int(self.numbers[order[place]]))[skip : skip + count - done]
            ids[done : done + len(part)] = part
            place, done = place + 1, done + len(part)
        return ids, documents

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The documents of an epoch, and where each ends."""
        if self._kept is None or self._kept[0] != epoch:
            order = generator(self.seed, "order of the documents", epoch).permutation(len(self.numbers))
            self._kept = epoch, order, np.cumsum(self.lengths[order])
        return self._kept[1:]


class Arranged(ABC):
    """Training batches whose rows hold documents one after another; batch i is a function of i alone.

    Args:
        task: a task with documents, such as language_modelling.
        seed: the run's seed.
        batch_size: rows a batch.

    Raises:
        ConfigurationError: for a task without documents.
    """

    insertion: Insertion | None = None
    facts: tuple[str, ...] = ()
    overlapping = False

    def __init__(self, task: Sampler, seed: int, batch_size: int) -> None:
        if not hasattr(task, "numbers"):
            name, other = (type(thing).__module__.rpartition(".")[2] for thing in (self, task))
            raise ConfigurationError(
                f"dataset={name} arranges documents, and task={other} has none; take task=language_modelling, or "
                "dataset=synthetic."
            )
        self.task: Text = task  # type: ignore[assignment]
        self.seed, self.batch_size = seed, batch_size

    @property
    def longest(self) -> int:
        """See ``Dataset.longest``."""
        return self.task.length

    @cached_property
    def reel(self) -> Reel:
        """The documents."""
        reel = Reel(self.task, self.seed)
        self.check(reel.total)
        return reel

    @abstractmethod
    def check(self, total: int) -> None:
        """Refuse a training text of ``total`` tokens that is too short.

        Raises:
            ConfigurationError: if it is.
        """

    @abstractmethod
    def batch(self, index: int) -> Batch:
        """The ``index``-th training batch, from 0."""

    def loader(self, start: int = 0, stop: int | None = None) -> Iterable[Batch]:
        """Batches ``start`` to ``stop - 1``, or without end."""
        return map(self.batch, itertools.count(start) if stop is None else range(start, stop))
