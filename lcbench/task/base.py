"""The interface of a task: what is asked, and how an answer is scored."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lcbench.corpus.documents import Unwatched, Watcher
from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.insertion import Insertion
from lcbench.dataset.synthetic import Examples, Rows
from lcbench.errors import ConfigurationError, closest
from lcbench.lengths import parse_length
from lcbench.task.spelling import Spelling, Words
from lcbench.task.tally import Outcomes, Tally

#: fresh examples of the training distribution
IN_DISTRIBUTION = "in_distribution"
#: stands where a model that answers by itself has said nothing
NOT_SAID = -1

_LENGTH_SET = re.compile(r"(?:(?P<base>\w+?)_)?length_(?:(?P<times>\d+)x|(?P<tokens>\d+[kM]?))")


@dataclass(frozen=True)
class Spoken:
    """An answer that a model gives by itself: greedily, token after token, after the prompt alone.

    Args:
        tokens: said at most.
        settled: of what rows have said so far, ids ``[batch, time]`` with ``NOT_SAID`` behind an end, whether nothing
            that would follow changes the score: bool ``[batch]``.
    """

    tokens: int
    settled: Callable[[Tensor], Tensor]


class Task(ABC):
    """What is asked and how it is scored.

    A subclass's constructor takes keyword-only arguments: those are its configuration.

    Sets of other lengths are named ``<set>_length_4x`` (4 times ``length``) or ``<set>_length_256`` (tokens);
    ``length_4x`` alone is in_distribution at that length.
    """

    #: the symbol of every token id, in order of id
    vocabulary: Sequence[str]
    #: longest training example, in tokens, answer included
    length: int
    #: the metric that results are ranked by
    headline: str = "error"
    #: what guessing among the plausible answers scores, per metric, in distribution
    chance: dict[str, float]
    #: rows a table of contextual positions (CoPE's p_max) needs to hold an exact solution
    positions_needed: int = 1
    #: the evaluation sets a run is scored on unless told otherwise
    evaluation_sets: tuple[str, ...]
    #: how landmarks are put into what a model reads; None: there are none
    insertion: Insertion | None = None
    #: whether two training examples may hold the same stretch of a text
    overlapping: bool = False
    #: who is told of work that turns up before ``prepare`` is called
    watcher: Watcher = Unwatched()

    @abstractmethod
    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        """Draw ``n`` examples of ``evaluation_set`` (or of ``TRAIN``), vectorised over examples."""

    @abstractmethod
    def solve(self, tokens: Tensor) -> Tensor:
        """The exact answers, from the model's input alone: int64 ``[batch, time]``, right wherever scored.

        Raises:
            ValueError: if the task has no exact answers.
        """

    @abstractmethod
    def at(self, evaluation_set: str, length: int) -> str:
        """The name of ``evaluation_set`` with examples of ``length`` tokens.

        Raises:
            ConfigurationError: if the task has no such set.
        """

    @abstractmethod
    def token_length(self, evaluation_set: str) -> int:
        """Longest example of ``evaluation_set`` (or of ``TRAIN``), in tokens, answer included.

        Raises:
            ConfigurationError: if there is no such set; names the closest.
        """

    def rows(self, evaluation_set: str, examples: int, seed: int) -> Rows:
        """What a model is scored on: here the first ``examples`` that ``sample`` draws."""
        return Examples(self, seed, evaluation_set, examples)

    def example(self, evaluation_set: str, number: int, seed: int) -> Batch:
        """One example by itself, from 0; of a text, a whole document.

        Raises:
            ConfigurationError: if there are fewer.
        """
        return self.rows(evaluation_set, number + 1, seed).take(number, number + 1)

    def streams(self, evaluation_set: str) -> bool:
        """Whether the set is defined as being read a piece at a time, with the state carried on."""
        return False

    def spoken(self, evaluation_set: str) -> Spoken | None:
        """How a model answers by itself, if the set is scored so: then ``tally`` is told of ids ``[batch, time]`` with
        ``NOT_SAID``. None: each token is judged with the right ones before it (teacher forcing)."""
        return None

    @property
    def spelling(self) -> Spelling:
        """How tokens are written: here as the words of the vocabulary."""
        return Words(self.vocabulary)

    def judge(self, scores: Tensor, targets: Tensor) -> Tensor:
        """What is kept of the scores of the next token, ``[batch, time, vocabulary]``, given the right ones
        ``[batch, time]``: here the likeliest, int64 ``[batch, time]``."""
        return scores.argmax(-1)

    def tally(self, evaluation_set: str) -> Tally:
        """What is counted of it: here ``outcomes``, as means."""
        return Outcomes(self.outcomes)

    def prepare(self, watcher: Watcher) -> dict[str, str | int]:
        """Make ready what examples are drawn from, which may take a while; returns what a record says of it: here
        nothing. ``content`` and ``tokenizer``, if there, are what a trained network must find unchanged."""
        return {}

    def outcomes(self, batch: Batch, predictions: Tensor) -> dict[str, Tensor]:
        """Per metric, one outcome for each thing it counts: bool (True is wrong) or float, flat ``[any]``.

        ``predictions``: int64 ``[batch, time]``. Here: ``error`` over scored positions and ``sequence_error`` over
        examples.
        """
        wrong = (predictions != batch.targets) & batch.scored
        return {"error": wrong[batch.scored], "sequence_error": wrong.any(1)}

    def describe(self, batch: Batch, row: int) -> str:
        """Example ``row`` of ``batch`` as text: its input, each scored token followed by ``->answer``."""
        words = []
        for t in range(batch.tokens.shape[1]):
            if batch.padding is not None and batch.padding[row, t]:
                continue
            word = self.vocabulary[int(batch.tokens[row, t])]
            if batch.scored[row, t]:
                word += "->" + self.vocabulary[int(batch.targets[row, t])]
            words.append(word)
        return " ".join(words)

    def unknown_set(self, name: str, known: Sequence[str]) -> ConfigurationError:
        """The error for an evaluation set that does not exist."""
        task = type(self).__name__
        return ConfigurationError(
            f"evaluation.sets: {task} has no set {name!r}; {closest(name, known)[:-1]} (known: {', '.join(known)})."
        )


def split_length(evaluation_set: str, length: int) -> tuple[str, int | None]:
    """A set's name without its length, and that length in tokens.

    ``sparse_length_4x`` is ``("sparse", 4 * length)``, ``length_1k`` is ``("in_distribution", 1000)``, and a name
    without a length comes back with None.
    """
    match = _LENGTH_SET.fullmatch(evaluation_set)
    if match is None:
        return evaluation_set, None
    tokens = int(match["times"]) * length if match["times"] else parse_length(match["tokens"])
    return match["base"] or IN_DISTRIBUTION, tokens


def join_length(evaluation_set: str, length: int) -> str:
    """The name of ``evaluation_set``, which has no length yet, at ``length`` tokens."""
    return f"length_{length}" if evaluation_set == IN_DISTRIBUTION else f"{evaluation_set}_length_{length}"


def refuse(key: str, value: object, reason: str, closest: object) -> ConfigurationError:
    """The error for an option that cannot be."""
    return ConfigurationError(f"{key}={value} {reason}; the closest that works is {key}={closest}.")


def refuse_length(evaluation_set: str, length: int, reason: str, closest: int) -> ConfigurationError:
    """The error for a length that cannot be: of the training set, which is ``task.length``, or of another."""
    if evaluation_set == TRAIN:
        return refuse("task.length", length, reason, closest)
    name, _ = split_length(evaluation_set, 1)
    return refuse("evaluation.sets", evaluation_set, reason, join_length(name, closest))
