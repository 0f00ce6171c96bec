"""TRIME by its definition (Zhong et al. 2022, arXiv 2205.12674): one exponential after another, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Pair = tuple[Tensor, int]


def probabilities(logits: Tensor, key: Tensor, memory: list[Pair], temperature: float = 1.0) -> list[Tensor]:
    """P of every word for one context: ``logits`` ``[vocabulary]``, ``key`` ``[d]``, pairs of a key and a word."""
    masses = [torch.exp(logits[word]) for word in range(len(logits))]
    for other, word in memory:
        score = sum(key[i] * other[i] for i in range(len(key))) / math.sqrt(len(key))
        masses[word] = masses[word] + torch.exp(score / temperature)
    total = sum(masses)
    return [mass / total for mass in masses]


def memory_of(
    row: int,
    time: int,
    keys: Tensor,
    tokens: list[list[int]],
    answers: list[list[int | None]],
    documents: list[int],
    segments: list[int],
    kind: str,
    local: bool,
) -> list[Pair]:
    """The pairs that position ``time`` of ``row`` sees.

    Args:
        keys: ``[rows, times, d]``.
        tokens: of each row, without padding.
        answers: the target where one is supervised, else None.
        documents, segments: of each row.
        kind: local, long or external.
        local: whether the row's own earlier positions are seen.
    """
    found = []
    for other in range(len(tokens)):
        for at in range(len(tokens[other])):
            if other == row:
                sees = local and at < time
            elif kind == "long":
                sees = documents[other] == documents[row] and segments[other] < segments[row]
            else:
                sees = kind == "external" and documents[other] != documents[row]
            if not sees:
                continue
            if at + 1 < len(tokens[other]):
                follower: int | None = tokens[other][at + 1]
            else:
                follower = answers[other][at]
                for next_ in range(len(tokens)):
                    goes_on = documents[next_] == documents[other] and segments[next_] == segments[other] + 1
                    if kind == "long" and goes_on and tokens[next_]:
                        follower = tokens[next_][0]
                        break
            if follower is not None:
                found.append((keys[other, at], follower))
    return found


def loss(
    logits: Tensor,
    keys: Tensor,
    tokens: list[list[int]],
    answers: list[list[int | None]],
    documents: list[int],
    segments: list[int],
    kind: str,
    local: bool = True,
) -> Tensor:
    """The mean of -log P of the target over positions that have one; ``logits`` ``[rows, times, vocabulary]``."""
    terms = []
    for row in range(len(tokens)):
        for time, answer in enumerate(answers[row]):
            if answer is None:
                continue
            memory = memory_of(row, time, keys, tokens, answers, documents, segments, kind, local)
            terms.append(-torch.log(probabilities(logits[row, time], keys[row, time], memory)[answer]))
    return sum(terms, torch.zeros((), dtype=logits.dtype)) / len(terms)
