"""Keys and values with the facts that decide who may see them: the argument of attention, and its cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lcbench.attention.base import Context, State


@dataclass(frozen=True)
class KeyValues(State):
    """Keys, before rotation, and values.

    Keys are kept unrotated so that an encoding whose angles change with length, and a mechanism that re-places what
    it retrieves, need no second copy.

    Args:
        k: ``[batch, heads, time, head_dim]``.
        v: ``[batch, heads, time, head_dim]``.
        features: what the position encoding must know of each key, ``[batch, heads, time, any]``, or None.
        positions: ``[batch, time]``, int64.
        documents: ``[batch, time]``, int64, or None.
        padding: ``[batch, time]``, bool, True where a key is never seen, or None.
        consecutive: see ``Context.consecutive``.
    """

    k: Tensor
    v: Tensor
    features: Tensor | None
    positions: Tensor
    documents: Tensor | None = None
    padding: Tensor | None = None
    consecutive: bool = True

    @staticmethod
    def of(k: Tensor, v: Tensor, features: Tensor | None, context: Context) -> KeyValues:
        """The keys and values of the tokens that ``context`` describes."""
        return KeyValues(k, v, features, context.positions, context.documents, context.padding, context.consecutive)

    @property
    def length(self) -> int:
        return self.k.shape[2]

    def append(self, new: KeyValues) -> KeyValues:
        """These followed by ``new`` along time."""

        def fact(old: Tensor | None, fresh: Tensor | None) -> Tensor | None:
            if old is None and fresh is None:
                return None
            dtype = (old if old is not None else fresh).dtype  # type: ignore[union-attr]
            old = torch.zeros_like(self.positions, dtype=dtype) if old is None else old
            fresh = torch.zeros_like(new.positions, dtype=dtype) if fresh is None else fresh
            return torch.cat([old, fresh], 1)

        features = None if new.features is None else torch.cat([self.features, new.features], 2)  # type: ignore[list-item]
        return KeyValues(
            k=torch.cat([self.k, new.k], 2),
            v=torch.cat([self.v, new.v], 2),
            features=features,
            positions=torch.cat([self.positions, new.positions], 1),
            documents=fact(self.documents, new.documents),
            padding=fact(self.padding, new.padding),
            consecutive=self.consecutive and new.consecutive,
        )

    def reset(self, rows: Tensor) -> Self:
        """Hides everything the rows have read: hidden keys weigh exactly nothing."""
        hidden = rows[:, None].expand_as(self.positions)
        return replace(self, padding=hidden if self.padding is None else self.padding | hidden)
