"""BM25 (Robertson and Zaragoza 2009), word by word."""

from __future__ import annotations

import math
from collections.abc import Sequence


def scores(documents: Sequence[Sequence[int]], query: Sequence[int], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """The score of every document for ``query``, both lists of words."""
    mean = sum(len(document) for document in documents) / len(documents)
    found = []
    for document in documents:
        total = 0.0
        for word in query:
            n = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            f = document.count(word)
            total += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(document) / mean))
        found.append(total)
    return found
