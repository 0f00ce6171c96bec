"""Draws without replacement for many examples at once, exactly uniform."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def subset(rng: np.random.Generator, n: int, total: int, count: int) -> NDArray[np.int64]:
    """``n`` subsets of ``count`` out of ``total`` places, each subset equally likely: ``[n, count]``, rising."""
    if 4 * count <= total:
        return np.sort(distinct(rng, n, count, total), axis=1)
    if count == total:
        return np.tile(np.arange(total), (n, 1))
    # The places with the smallest of random numbers. Where the last one in and the first one out are equal the row is
    # drawn again: what remains treats all places alike, however coarse the numbers.
    coarse = np.uint16 if total <= 2**12 else np.uint32
    chosen = np.empty((n, total), np.bool_)
    rows = np.arange(n)
    while rows.size:
        numbers = rng.integers(0, np.iinfo(coarse).max, (rows.size, total), dtype=coarse, endpoint=True)
        ordered = np.sort(numbers, axis=1)
        last = ordered[:, count - 1]
        chosen[rows] = numbers <= last[:, None]
        rows = rows[last == ordered[:, count]]
    places = np.flatnonzero(chosen).reshape(n, count)
    places -= np.arange(n)[:, None] * total
    return places


def distinct(rng: np.random.Generator, n: int, count: int, choices: int) -> NDArray[np.int64]:
    """``n`` rows of ``count`` different numbers below ``choices``, in any order equally likely: ``[n, count]``."""
    if 4 * count > choices:
        return _shuffled(rng, n, choices)[:, :count]
    # Each number has its column in its lowest bits, so that sorting shows the repeats and still tells where they are.
    bits = (count - 1).bit_length()
    dtype = np.dtype(np.uint32 if choices << bits <= 2**32 else np.uint64)
    shift, column_mask, columns = dtype.type(bits), dtype.type(2**bits - 1), np.arange(count, dtype=dtype)
    numbers: np.ndarray = rng.integers(0, choices, (n, count), dtype=np.uint32).astype(dtype)
    numbers = numbers << shift | columns
    rows = np.arange(n)
    # What its row already holds is drawn again until it is new. No number is treated differently from another, so all
    # arrangements stay equally likely.
    while rows.size:
        ordered = np.sort(numbers[rows], axis=1)
        bare = ordered >> shift
        row, place = np.divmod(np.flatnonzero(bare[:, 1:] == bare[:, :-1]), max(1, count - 1))
        column = ordered[row, place + 1] & column_mask
        fresh: np.ndarray = rng.integers(0, choices, row.size, dtype=np.uint32).astype(dtype)
        numbers[rows[row], column] = fresh << shift | column
        rows = rows[np.unique(row)]
    return (numbers >> shift).astype(np.int64)


def _shuffled(rng: np.random.Generator, n: int, choices: int) -> NDArray[np.int64]:
    """``n`` random orders of ``0 .. choices - 1``, ``[n, choices]``.

    Sorts numbers that hold random bits above the bits of the choice: 40 at least, up to 16 million choices.
    """
    bits = (choices - 1).bit_length()
    numbers = rng.integers(0, 2 ** (64 - bits), (n, choices), dtype=np.uint64)
    ordered = np.sort(numbers << np.uint64(bits) | np.arange(choices, dtype=np.uint64), axis=1)
    return (ordered & np.uint64(2**bits - 1)).astype(np.int64)
