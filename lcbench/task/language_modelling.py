"""Language modelling: predict every next token of a text.

One number has many meanings here: perplexity depends on the tokens, on which of them count, and above all on how much
of the past each was predicted from. So a set of examples is a part of the corpus and a protocol (``windows``), and
every set counts the same targets of the same documents, whatever its protocol and its length: a difference between two
sets is one of context alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from lcbench.corpus.base import TEST, VALIDATION, Corpus
from lcbench.corpus.documents import Documents, Watcher, tokens_of, word_starts
from lcbench.corpus.split import parts_of
from lcbench.dataset.base import TRAIN, Batch
from lcbench.lengths import parse_length
from lcbench.task.base import Task, join_length, refuse, split_length
from lcbench.task.likelihood import Likelihood
from lcbench.task.windows import PROTOCOLS, Protocol, windows_of
from lcbench.tokenizer.base import Names, Tokenizer
from lcbench.units import Length

_SET = re.compile(rf"(?P<part>test_)?(?P<protocol>{'|'.join(PROTOCOLS)})(?:_stride_(?P<stride>\d+[kM]?))?")


class LanguageModelling(Task):
    """Predict every next token of a document.

    Evaluation sets are protocols: ``non_overlapping``, ``sliding``, ``overlapping_all``, ``truncated_document`` and
    ``streaming``, on the documents kept for validation, or with ``test_`` in front on those kept for the test.
    ``_stride_32`` says how far windows of ``sliding`` and ``overlapping_all`` are apart; a quarter of a window
    without. ``_length_512`` and ``_length_4x`` are windows of another length: ``test_sliding_stride_32_length_512``.

    An example is as much text as ``length`` targets: ``evaluation.examples`` of them are counted, from the first
    documents in a random order that is the same everywhere. Of ``truncated_document``, the first targets of as many
    documents as it takes.

    Metrics: ``bits_per_byte``, ``loss`` (nats a token), ``perplexity`` (a token), ``word_perplexity``; each with its
    95 % interval over documents and the number of bytes, tokens or words that it is a mean of. Words are parted by
    white space, and count, like bytes, where they begin in a token that counts; both are those of the original text,
    whatever the tokens lose. Where every target of a part counts once and its publishers say how many words it has
    (``corpus.words``), these are the words that ``word_perplexity`` is by, and ``word_perplexity/white_space`` is by
    those found. ``loss/position_64_127`` is that of targets that were predicted from so many tokens. Beside them,
    ``documents`` that were counted, of them ``documents_cut``, and ``documents_short``, ``documents_left_out`` and
    ``targets_left_out``, which were not.

    With ``begin`` a token that is in no text stands before every document, so that its first token is a target too:
    n targets a document of n tokens, n - 1 without. A model that was trained with it needs it wherever it begins to
    read: it is the first input of every window, and of every training example but the next piece of a stream.

    In training an example is a stretch of one document, at random, of ``length`` targets, or the whole of a shorter
    one; datasets that arrange documents (``concatenated``, ``contiguous``) take them as they are.

    Args:
        corpus: where documents come from.
        tokenizer: what makes tokens of them.
        length: L, inputs of a window, and of a training example.
        min_document: documents of fewer tokens are used nowhere, and counted; at least 2: a token and the next. The
            corpus may ask for more.
        max_document: of longer documents, only so many targets are used in evaluation, and these are counted; null:
            all of them.
        begin: put a token before every document and window: the tokenizer's own, or one more in the vocabulary.
    """

    overlapping = True
    headline = "bits_per_byte"
    evaluation_sets = ("non_overlapping", "sliding", "streaming")

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        length: Length = 256,
        min_document: Length = 2,
        max_document: Length | None = 4096,
        begin: bool = False,
    ) -> None:
        if length < 1:
            raise refuse("task.length", length, "reads nothing", 1)
        if min_document < 2 - begin:
            raise refuse("task.min_document", min_document, "has no token to predict", 2 - begin)
        if max_document is not None and max_document < 1:
            raise refuse("task.max_document", max_document, "leaves nothing to count", 1)
        self.corpus, self.tokenizer, self.length = corpus, tokenizer, length
        self.min_document, self.max_document = max(min_document, corpus.min_document), max_document
        self.vocabulary = tokenizer.vocabulary
        self.begin: int | None = None
        if begin:
            self.begin = len(self.vocabulary) if tokenizer.begin is None else tokenizer.begin
        if self.begin == len(self.vocabulary):
            self.vocabulary = Names(self.begin + 1, lambda: (*tokenizer.vocabulary, "<begin>"))
        ids = len(self.vocabulary)
        self.chance = {"loss": math.log(ids), "perplexity": float(ids)}

    def prepare(self, watcher: Watcher) -> dict[str, str | int]:
        """See ``Task.prepare``: reads the corpus, unless it was read before."""
        before, self.watcher = self.watcher, watcher
        try:
            found = {**self.documents.about, "tokenizer": self.tokenizer.identity}
        finally:
            self.watcher = before
        parts = {f"{part}_documents": len(numbers) for part, numbers in self._parts.items()}
        short = int((self.documents.lengths < self.min_document).sum())
        words: dict[str, str | int] = {f"{part}_words_published": n for part, n in self.corpus.words.items()}
        if words:
            words["words_from"] = self.corpus.words_from
        return {**found, **parts, "documents_short": short, **words}

    @cached_property
    def documents(self) -> Documents:
        """All of the corpus."""
        return tokens_of(self.corpus, self.tokenizer, self.watcher)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Tokens to predict of each document, ``[documents]``: all, or all but the first."""
        return self.documents.lengths - (self.begin is None)

    @cached_property
    def _whole_parts(self) -> dict[str, NDArray[np.int64]]:
        return parts_of(self.documents, self.corpus)

    @cached_property
    def _parts(self) -> dict[str, NDArray[np.int64]]:
        lengths, whole = self.documents.lengths, self._whole_parts
        parts = {part: numbers[lengths[numbers] >= self.min_document] for part, numbers in whole.items()}
        for part, numbers in parts.items():
            if not len(numbers):
                longest = int(min(lengths[numbers].max() for numbers in whole.values()))
                if self.min_document == self.corpus.min_document:
                    raise refuse("corpus.min_document", self.min_document, f"leaves no document for {part}", longest)
                raise refuse("task.min_document", self.min_document, f"leaves no document for {part}", longest)
        return parts

    def numbers(self, part: str) -> NDArray[np.int64]:
        """Which documents a part of the corpus has, in a random order that is the same everywhere."""
        return self._parts[part]

    @cached_property
    def _training_ends(self) -> NDArray[np.int64]:
        """Running sum of the targets of the training documents."""
        return np.cumsum(self.targets[self.numbers(TRAIN)])

    def token_length(self, evaluation_set: str) -> int:
        if evaluation_set == TRAIN:
            return self.length + 1
        part, protocol, length, _ = self._parsed(evaluation_set)
        if protocol != "streaming":
            return length + 1
        if self.max_document is not None:
            return self.max_document + 1
        return int(self.targets[self.numbers(part)].max()) + 1

    def at(self, evaluation_set: str, length: int) -> str:
        """See ``Task.at``; ``streaming`` reads whole documents and has no other length."""
        _, protocol, _, _ = self._parsed(evaluation_set)
        if protocol == "streaming":
            return evaluation_set
        name = join_length(split_length(evaluation_set, self.length)[0], length)
        self._parsed(name)
        return name

    def streams(self, evaluation_set: str) -> bool:
        return self._parsed(evaluation_set)[1] == "streaming"

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        """See ``Task.sample``; sets for evaluation are not drawn but listed by ``rows``."""
        if evaluation_set != TRAIN:
            self._parsed(evaluation_set)
            raise ValueError(f"{evaluation_set} is not drawn: its rows are listed")
        ends, numbers = self._training_ends, self.numbers(TRAIN)
        # every target is as likely as any other to be in the example, but near the ends of its document
        chosen = numbers[np.searchsorted(ends, rng.integers(ends[-1], size=n), side="right")]
        room = np.maximum(self.targets[chosen] - self.length, 0)
        starts = rng.integers(room, endpoint=True)
        lengths = np.minimum(self.length, self.targets[chosen])
        return self._batch(chosen, starts, lengths, np.zeros(n, np.int64))

    def solve(self, tokens: Tensor) -> Tensor:
        raise ValueError("what a text says next does not follow from what it has said")

    def rows(self, evaluation_set: str, examples: int, seed: int) -> TextRows:
        """See ``Task.rows``; which documents they are is not drawn, so ``seed`` changes nothing."""
        return TextRows(self, *self._parsed(evaluation_set), targets=examples * self.length)

    def example(self, evaluation_set: str, number: int, seed: int) -> Batch:
        """See ``Task.example``: a document of the set's part of the corpus, as far as evaluation reads it; ``seed``
        changes nothing."""
        numbers = self.numbers(self._parsed(evaluation_set)[0])
        if number >= len(numbers):
            raise refuse("--document", number, f"is none of {len(numbers)}, counted from 0", len(numbers) - 1)
        chosen = numbers[number : number + 1]
        targets = self.documents.lengths[chosen] - 1
        if self.max_document is not None:
            targets = np.minimum(targets, self.max_document)
        return self._batch(chosen, np.zeros(1, np.int64), targets, np.zeros(1, np.int64))

    def judge(self, scores: Tensor, targets: Tensor) -> Tensor:
        """``-ln p(target)``, in 32 bits at least, ``[batch, time]``."""
        wide = scores if scores.dtype == torch.float64 else scores.float()
        return cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)

    def tally(self, evaluation_set: str) -> Likelihood:
        """See ``Task.tally``; its details name documents as the corpus does."""
        part, protocol, _, _ = self._parsed(evaluation_set)
        published = None
        if part in self.corpus.words:
            published = int(self.targets[self._whole_parts[part]].sum()), self.corpus.words[part]
        return Likelihood(protocol == "truncated_document", published, self._named)

    def _named(self, documents: Sequence[int]) -> list[dict[str, Any]]:
        """What a person knows each of ``documents`` by."""
        names = self.documents.names(documents)
        digests = (f"{int(self.documents.digests[number]):016x}" for number in documents)
        return [{"document": name, "digest": digest} for name, digest in zip(names, digests, strict=True)]

    @property
    def spelling(self) -> Tokenizer:
        """See ``Task.spelling``."""
        return self.tokenizer

    def describe(self, batch: Batch, row: int) -> str:
        """The text of a row."""
        ids = batch.tokens[row] if batch.padding is None else batch.tokens[row][~batch.padding[row]]
        if self.begin is not None:
            ids = ids[ids != self.begin]
        return self.tokenizer.decode(ids.cpu().numpy())

    def _parsed(self, evaluation_set: str) -> tuple[str, Protocol, int, int]:
        """The part of the corpus, the protocol, L and S."""
        name, length = split_length(evaluation_set, self.length)
        match = _SET.fullmatch(name)
        if match is None:
            known = [*PROTOCOLS, "test_sliding", "sliding_stride_32", "sliding_length_512", "sliding_length_4x"]
            raise self.unknown_set(evaluation_set, known)
        protocol: Protocol = match["protocol"]  # type: ignore[assignment]
        if length is not None and protocol == "streaming":
            raise refuse("evaluation.sets", evaluation_set, "reads whole documents", name)
        if length is not None and length < 1:
            raise refuse("evaluation.sets", evaluation_set, "reads nothing", join_length(name, 1))
        length = self.length if length is None else length
        if match["stride"] is None:
            stride = max(1, length // 4)
        elif protocol not in ("sliding", "overlapping_all"):
            plain = f"{match['part'] or ''}{protocol}"
            raise refuse("evaluation.sets", evaluation_set, "has windows that do not overlap, so no stride", plain)
        else:
            stride = parse_length(match["stride"])
            if not 1 <= stride <= length:
                closest = f"{match['part'] or ''}{protocol}_stride_{min(max(stride, 1), length)}"
                raise refuse("evaluation.sets", evaluation_set, f"skips targets of windows of {length}", closest)
        return TEST if match["part"] else VALIDATION, protocol, length, stride

    def _batch(
        self,
        documents: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        first: NDArray[np.int64],
    ) -> Batch:
        """Rows ``[n]`` of documents: ``lengths`` inputs from ``starts`` on, of whose targets those from ``first`` on
        count. With ``begin``, place 0 of a document is that token, which also replaces the first input of a row."""
        n, time = len(documents), int(lengths.max())
        ids = np.zeros((n, time + 1), np.int64)
        words, size = np.zeros(n, np.int64), np.zeros(n, np.int64)
        for row, (document, start, length, skip) in enumerate(zip(documents, starts, lengths, first, strict=True)):
            text = self.documents.of(int(document))
            target = int(start) + (self.begin is None)  # the first
            ids[row, 0] = text[start] if self.begin is None else self.begin
            ids[row, 1 : length + 1] = text[target : target + length]
            before, scored_text = self._original(int(document), target + int(skip), target + int(length))
            size[row] = len(scored_text)
            words[row] = word_starts(before + scored_text)[len(before) :].sum()
        place = np.arange(time)
        padding = place >= lengths[:, None]  # [n, time]
        scored = torch.from_numpy(~padding & (place >= first[:, None]))
        tokens = torch.from_numpy(ids)
        return Batch(
            tokens=tokens[:, :-1],
            targets=tokens[:, 1:],
            scored=scored,
            supervised=scored,
            padding=torch.from_numpy(padding) if padding.any() else None,
            facts={
                "document": torch.from_numpy(documents),
                "words": torch.from_numpy(words),
                "bytes": torch.from_numpy(size),
            },
        )

    def _original(self, document: int, start: int, stop: int) -> tuple[bytes, bytes]:
        """The bytes of the text that tokens ``start`` to ``stop - 1`` of a document stand for, after the last one
        before them, if there is one."""
        if self.documents.bytes_to is not None:
            return self.documents.original(document, start, stop)
        ids = self.documents.of(document)
        before = self.tokenizer.to_bytes(ids[max(0, start - 1) : start])
        return before[-1:], self.tokenizer.to_bytes(ids[start:stop])


class TextRows:
    """The windows of an evaluation set, longest first: rows of one length stand together.

    Args:
        task: whose documents they are of.
        part: of the corpus.
        protocol: of the set.
        length: L, inputs of a window.
        stride: S, between windows.
        targets: how many count, each once.
    """

    def __init__(
        self, task: LanguageModelling, part: str, protocol: Protocol, length: int, stride: int, *, targets: int
    ) -> None:
        self.task = task
        numbers = task.numbers(part)
        whole = task.targets[numbers]
        most = length if protocol == "truncated_document" else task.max_document
        allowed = whole if most is None else np.minimum(whole, most)
        before = np.cumsum(allowed) - allowed
        used = before < targets
        taken = allowed[used]
        if protocol != "truncated_document":
            taken = np.minimum(taken, targets - before[used])
        # document, start, length, first: [4, windows]
        listed, reached = [], 0
        for document, count in zip(numbers[used], taken, strict=True):
            found = windows_of(protocol, int(count), length, stride)
            listed.append([np.full_like(found.start, document), found.start, found.length, found.first])
            reached += int(found.start[-1] + found.length[-1])
        self.windows = np.concatenate(listed, axis=1)
        self.windows = self.windows[:, np.argsort(-self.windows[2], kind="stable")]
        self.counts = {
            "documents": int(used.sum()),
            "documents_cut": int((taken < whole[used]).sum()),
            "documents_left_out": int((~used).sum()),
            "targets_left_out": int(whole.sum()) - reached,
        }

    def __len__(self) -> int:
        return self.windows.shape[1]

    @property
    def positions(self) -> int:
        """See ``Rows.positions``."""
        return int(self.windows[2].sum())

    def batches(self, batch_size: int) -> Iterator[tuple[int, int]]:
        """See ``Rows.batches``."""
        room, start = batch_size * self.task.length, 0
        while start < len(self):
            # the first row is the longest, and pads the others
            stop = min(start + max(1, room // int(self.windows[2, start])), len(self))
            yield start, stop
            start = stop

    def take(self, start: int, stop: int) -> Batch:
        """See ``Rows.take``."""
        return self.task._batch(*self.windows[:, start:stop])
