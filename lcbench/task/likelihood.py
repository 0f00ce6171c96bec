"""Perplexities, bits per byte and loss by position, from the logarithm of the probability of every token that counts.

With NLL the sum of ``-ln p`` over all that counts, and N the number of tokens, words or bytes that it stands for,

    loss = NLL / N_tokens            perplexity = exp(NLL / N_tokens)
    word_perplexity = exp(NLL / N_words)          bits_per_byte = NLL / (ln 2 N_bytes)

each summed over everything first and divided once. Intervals take documents as independent, not tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcbench.dataset.base import Batch
from lcbench.results.statistics import ratio


class Likelihood:
    """Sums by document.

    Batches have the facts ``document``, ``words`` and ``bytes``, one a row ``[batch]``: which document the row is of,
    and how many words and bytes begin in the tokens that count. Values are ``-ln p`` in nats ``[batch, time]``.

    Args:
        mean_of_documents: loss, perplexities and bits per byte are means over documents of each one's own, as a few
            protocols define them; of documents without a word there is none by word.
        published: how many targets all documents have, and how many words as their publishers count them: if all
            count once, perplexity is by these words.
        named: what a person knows documents by, for ``details``.
    """

    def __init__(
        self,
        mean_of_documents: bool = False,
        published: tuple[int, int] | None = None,
        named: Callable[[Sequence[int]], list[dict[str, Any]]] | None = None,
    ) -> None:
        self.mean_of_documents, self.published, self.named = mean_of_documents, published, named or _numbered
        # NLL, tokens, words, bytes
        self.documents: dict[int, NDArray[np.float64]] = {}
        # by the smallest number of tokens read in a range, then by document: NLL, tokens
        self.places: dict[int, dict[int, NDArray[np.float64]]] = {}

    def add(self, batch: Batch, values: Tensor) -> None:
        """See ``Tally.add``."""
        # not every accelerator has 64 bits
        scored, loss = batch.scored.cpu(), values.cpu().double()  # [batch, time]
        loss = loss.masked_fill(~scored, 0)
        documents = batch.facts["document"].tolist()
        sums = [loss.sum(1), scored.sum(1), batch.facts["words"], batch.facts["bytes"]]
        _add(self.documents, documents, torch.stack([s.cpu().double() for s in sums], 1).numpy())
        # a target at place t of a row is predicted after t + 1 tokens: 1, 2-3, 4-7, ...
        least = 1
        while least <= scored.shape[1]:
            part = slice(least - 1, 2 * least - 1)
            sums = [loss[:, part].sum(1), scored[:, part].sum(1)]
            of_place = torch.stack([s.cpu().double() for s in sums], 1).numpy()
            present = of_place[:, 1] > 0
            if present.any():
                rows = [document for document, there in zip(documents, present, strict=True) if there]
                _add(self.places.setdefault(least, {}), rows, of_place[present])
            least *= 2

    def record(self) -> dict[str, float]:
        """See ``Tally.record``."""
        if not self.documents:
            return {}
        loss, tokens, words, size = np.stack(list(self.documents.values())).T
        found: dict[str, float] = {}

        def add(name: str, unit: NDArray[np.float64], transform: Callable[[float], float]) -> None:
            there = unit > 0 if self.mean_of_documents else np.ones_like(unit, bool)
            if not unit.any():
                return
            numbers = (loss[there] / unit[there], np.ones(there.sum())) if self.mean_of_documents else (loss, unit)
            mean, low, high = map(transform, ratio(*numbers))
            found.update({name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": round(unit.sum())})

        add("bits_per_byte", size, lambda nats: nats / math.log(2))
        add("loss", tokens, float)
        add("perplexity", tokens, _exp)
        if self.published is not None and tokens.sum() == self.published[0] and not self.mean_of_documents:
            add("word_perplexity", words * (self.published[1] / words.sum()), _exp)
            add("word_perplexity/white_space", words, _exp)
        else:
            add("word_perplexity", words, _exp)
        for least, documents in sorted(self.places.items()):
            mean, low, high = ratio(*np.stack(list(documents.values())).T)
            name = f"loss/position_{least}" if least == 1 else f"loss/position_{least}_{2 * least - 1}"
            n = int(sum(counted for _, counted in documents.values()))
            found |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}
        return found

    def details(self) -> list[dict[str, Any]]:
        """See ``Tally.details``: a row a document, in the order in which they were scored."""
        numbers = list(self.documents)
        rows = []
        for facts, (loss, *counts) in zip(self.named(numbers), self.documents.values(), strict=True):
            tokens, words, size = map(int, counts)
            scores = {"loss": loss / tokens, "bits_per_byte": loss / size / math.log(2) if size else math.nan}
            rows.append({**facts, "tokens": tokens, "words": words, "bytes": size, "nats": loss, **scores})
        return rows


def _numbered(documents: Sequence[int]) -> list[dict[str, Any]]:
    return [{"document": number} for number in documents]


def _add(sums: dict[int, NDArray[np.float64]], documents: list[int], rows: NDArray[np.float64]) -> None:
    for document, row in zip(documents, rows, strict=True):
        sums[document] = sums[document] + row if document in sums else row


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
