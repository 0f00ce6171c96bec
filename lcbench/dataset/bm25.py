"""BM25: which examples share rare words.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009. With f(w, D) how often word w
is in document D, |D| its length, n(w) in how many of N documents w is,

    idf(w) = log(1 + (N - n(w) + 1/2) / (n(w) + 1/2))
    score(Q, D) = sum over words w of Q of  idf(w) f(w, D) (k1 + 1) / (f(w, D) + k1 (1 - b + b |D| / mean length))

A word that Q has twice counts twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: scores held at once
BLOCK = 2**22


def counts(tokens: Tensor, padding: Tensor | None, vocabulary: int) -> Tensor:
    """f: how often each word is in each document, float32 ``[documents, vocabulary]``, sparse.

    Args:
        tokens: ids below ``vocabulary``, ``[documents, time]``.
        padding: bool, ``[documents, time]``, or None.
    """
    document = torch.arange(len(tokens))[:, None].expand_as(tokens)
    present = torch.ones_like(tokens, dtype=torch.bool) if padding is None else ~padding
    places = torch.stack([document[present], tokens[present].long()])
    return _sparse(places, torch.ones(places.shape[1]), (len(tokens), vocabulary))


def weighted(frequencies: Tensor, k1: float = 1.2, b: float = 0.75) -> Tensor:
    """What one occurrence of a word in a query adds to each document's score, shaped like ``frequencies``."""
    document, word = frequencies.indices()
    f = frequencies.values()
    n, vocabulary = frequencies.shape
    containing = torch.zeros(vocabulary).index_add_(0, word, torch.ones_like(f))
    idf = torch.log1p((n - containing + 0.5) / (containing + 0.5))
    length = torch.zeros(n).index_add_(0, document, f)
    relative = length / length.mean()
    values = idf[word] * f * (k1 + 1) / (f + k1 * (1 - b + b * relative[document]))
    return _sparse(frequencies.indices(), values, (n, vocabulary))


def nearest(frequencies: Tensor, count: int) -> Tensor:
    """For every document, the ``count`` others that score highest with it as the query, best first: int64
    ``[documents, count]``, or fewer columns if there are fewer others."""
    n = frequencies.shape[0]
    weights = weighted(frequencies)
    count = min(count, n - 1)
    found = []
    for start in range(0, n, size := max(1, BLOCK // max(frequencies.shape))):
        rows = torch.arange(start, min(start + size, n))
        queries = frequencies.index_select(0, rows).to_dense()  # [block, vocabulary]
        scores = torch.sparse.mm(weights, queries.T).T.contiguous()  # [block, documents]
        scores[torch.arange(len(rows)), rows] = -torch.inf
        # stable, so that equal scores are ordered the same everywhere
        found.append(scores.sort(dim=1, descending=True, stable=True).indices[:, :count])
    return torch.cat(found)


def _sparse(places: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(places, values, shape, check_invariants=False).coalesce()
