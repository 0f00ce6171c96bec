"""Evaluation protocols: which stretches of a document a model reads, and which of its predictions count.

Of a document ``x_0 .. x_m`` the m targets ``x_1 .. x_m`` can be predicted. A window that starts at s with L inputs
reads ``x_s .. x_{s+L-1}`` and predicts the token after each. How much a model knows of a target is how many tokens of
its window come before it, and that is all the protocols differ in:

- ``non_overlapping``: windows at 0, L, 2L, ...; all their targets count. A target's context is 1 to L tokens.
- ``sliding`` with stride S (Press, Smith and Lewis, "Train Short, Test Long", ICLR 2022, arXiv 2108.12409): windows at
  0, S, 2S, ...; of the first all targets count, of the others the last S. Context is L - S + 1 to L, but in the first
  window.
- ``overlapping_all``: windows at 0, S, 2S, ... that are whole; all their targets count, so a target counts about L / S
  times, with a mean context of about L / 2. The code that was published with LongLoRA (Chen et al. 2023, arXiv
  2309.12307) does this where the paper describes ``sliding``.
- ``truncated_document``: the first L targets of each document; the mean over documents of each one's mean. The script
  that was published with YaRN (Peng et al. 2023, arXiv 2309.00071).
- ``streaming``: the whole document in order, the state carried from piece to piece: Transformer-XL, Memorizing
  Transformers, Infini-attention. Context is all of the past that the state keeps.

In the first three, every window begins with a fresh state. Nothing is ever read across documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Protocol = Literal["non_overlapping", "sliding", "overlapping_all", "truncated_document", "streaming"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True)
class Windows:
    """Stretches of a document.

    Args:
        start: the first input of each, int64 ``[windows]``.
        length: how many inputs each has, int64 ``[windows]``.
        first: the place in it of the first target that counts, int64 ``[windows]``.
    """

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    first: NDArray[np.int64]


def windows_of(protocol: Protocol, targets: int, length: int, stride: int) -> Windows:
    """The windows of a document.

    Args:
        protocol: see above.
        targets: m, at least 1.
        length: L, inputs of a window.
        stride: S, from 1 to L.
    """
    if protocol == "streaming":
        start = np.zeros(1, np.int64)
        return Windows(start, start + targets, start)
    if protocol == "truncated_document" or targets <= length:
        start = np.zeros(1, np.int64)
        return Windows(start, start + min(length, targets), start)
    if protocol == "overlapping_all":
        start = np.arange(0, targets - length + 1, stride)
        return Windows(start, np.full_like(start, length), np.zeros_like(start))
    if protocol == "non_overlapping":
        stride = length
    # the first window counts `length` targets, each later one up to `stride` more
    start = np.arange(0, targets - length + stride, stride)
    first = np.where(start == 0, 0, length - stride)
    return Windows(start, np.minimum(length, targets - start), first)
