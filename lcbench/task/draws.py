"""Draws without replacement for many examples at once, exactly uniform."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def symbols(rng: np.random.Generator, shape: tuple[int, ...], choices: int) -> np.ndarray:
    """Independent numbers below ``choices``, equally likely, in the smallest unsigned integers."""
    if choices in (2, 4, 8, 16, 32, 64, 128, 256):
        return rng.integers(0, 255, shape, np.uint8, endpoint=True) & np.uint8(choices - 1)
    return rng.integers(0, choices, shape, np.min_scalar_type(choices))


def subset(rng: np.random.Generator, n: int, total: int, count: int) -> NDArray[np.bool_]:
    """``n`` subsets of ``count`` out of ``total`` places, each subset equally likely: ``[n, total]``, True inside."""
    if 4 * count <= total:
        chosen = np.zeros((n, total), np.bool_)
        chosen[np.arange(n)[:, None], distinct(rng, n, count, total)] = True
        return chosen
    if count == total:
        return np.ones((n, total), np.bool_)
    chosen, tied = _smallest(rng, n, total, count)
    while tied.size:
        chosen[tied], still = _smallest(rng, tied.size, total, count)
        tied = tied[still]
    return chosen


def _smallest(rng: np.random.Generator, n: int, total: int, count: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Places of the ``count`` smallest of random numbers, and the rows where the last in and the first out are equal.

    The other rows treat all places alike, however coarse the numbers.
    """
    dtype = np.uint16 if total <= 2**12 else np.uint32
    numbers = rng.integers(0, np.iinfo(dtype).max, (n, total), dtype=dtype, endpoint=True)
    ordered = np.sort(numbers, axis=1)
    last = ordered[:, count - 1]
    return numbers <= last[:, None], np.flatnonzero(last == ordered[:, count])


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
