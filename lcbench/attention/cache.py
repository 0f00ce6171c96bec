"""What a layer keeps of tokens, with the facts that decide who may see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from lcbench.attention.base import Context, State


def along_time(tensor: Tensor, order: Tensor) -> Tensor:
    """``tensor`` ``[batch, ..., time, any]`` with the times ``order`` ``[batch, new time]``, int64, of each row."""
    index = order.view(order.shape[0], *[1] * (tensor.dim() - 3), order.shape[1], 1)
    return tensor.gather(-2, index.expand(*tensor.shape[:-2], -1, tensor.shape[-1]))


@dataclass(frozen=True, kw_only=True)
class Cache(State):
    """Tokens in the order in which they were read, and what each of them is.

    What a subclass adds to the facts is kept as ``[batch, ..., time, any]``, or None.

    Args:
        positions: ``[batch, time]``, int64.
        documents: ``[batch, time]``, int64, or None.
        padding: ``[batch, time]``, bool, True where nothing is to be seen, or None.
        consecutive: see ``Context.consecutive``.
    """

    positions: Tensor
    documents: Tensor | None = None
    padding: Tensor | None = None
    consecutive: bool = True

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    def append(self, new: Self) -> Self:
        """These followed by ``new`` along time."""

        def fact(old: Tensor | None, fresh: Tensor | None) -> Tensor | None:
            if old is None and fresh is None:
                return None
            dtype = (old if old is not None else fresh).dtype  # type: ignore[union-attr]
            old = torch.zeros_like(self.positions, dtype=dtype) if old is None else old
            fresh = torch.zeros_like(new.positions, dtype=dtype) if fresh is None else fresh
            return torch.cat([old, fresh], 1)

        kept = {name: torch.cat([value, getattr(new, name)], -2) for name, value in self._kept().items()}
        return dataclasses.replace(
            self,
            positions=torch.cat([self.positions, new.positions], 1),
            documents=fact(self.documents, new.documents),
            padding=fact(self.padding, new.padding),
            consecutive=self.consecutive and new.consecutive,
            **kept,
        )

    def until(self, stop: int) -> Self:
        """The first ``stop`` tokens: views."""
        return self._times(lambda t: t[:, :stop], lambda t: t[..., :stop, :])

    def recent(self, count: int) -> Self:
        """The last ``count`` tokens of each row, or all if there are fewer.

        Where there is padding, tokens move to the right end of their row and what is left of them is zero and padding:
        so the result depends on the tokens that were read, not on how they were cut into calls.
        """
        if self.padding is None:
            first = max(0, self.length - count)
            # copies: a view would keep everything before it alive
            return self._times(lambda t: t[:, first:].clone(), lambda t: t[..., first:, :].clone()) if first else self
        order = (~self.padding).long().argsort(dim=1, stable=True)  # [batch, time], padding first
        order = order[:, max(0, self.length - count) :]
        sorted_ = self._times(lambda t: t.gather(1, order), lambda t: along_time(t, order))
        padding = sorted_.padding
        assert padding is not None

        def clear(tensor: Tensor) -> Tensor:
            hidden = padding.view(padding.shape[0], *[1] * (tensor.dim() - 3), padding.shape[1], 1)
            return tensor.masked_fill(hidden, 0)

        cleared = sorted_._times(lambda t: t.masked_fill(padding, 0), clear)
        return dataclasses.replace(cleared, padding=padding)

    def reorder_last(self, order: Tensor) -> Self:
        """The last tokens, as many as ``order`` ``[batch, count]`` names, in that order (from 0, int64)."""
        before = self.length - order.shape[1]
        first = torch.arange(before, device=order.device).expand(order.shape[0], -1)
        whole = torch.cat([first, order + before], 1)
        return self._times(lambda t: t.gather(1, whole), lambda t: along_time(t, whole))

    def arranged(self, order: Tensor, hidden: Tensor) -> Self:
        """Tokens ``order`` ``[batch, new time]``, int64, of each row; those where ``hidden`` (bool) are padding."""
        arranged = self._times(lambda t: t.gather(1, order), lambda t: along_time(t, order))
        return dataclasses.replace(arranged, padding=hidden, consecutive=False)

    def reset(self, rows: Tensor) -> Self:
        """Hides everything the rows have read: what is hidden weighs exactly nothing."""
        hidden = rows[:, None].expand_as(self.positions)
        return dataclasses.replace(self, padding=hidden if self.padding is None else self.padding | hidden)

    def _kept(self) -> dict[str, Tensor]:
        facts = {f.name for f in dataclasses.fields(Cache)}
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in facts}
        return {name: value for name, value in own.items() if value is not None}

    def _times(self, of_facts: Callable[[Tensor], Tensor], of_kept: Callable[[Tensor], Tensor]) -> Self:
        """The same with ``[batch, time]`` and ``[batch, ..., time, any]`` tensors changed."""
        changes: dict[str, Any] = {name: of_kept(value) for name, value in self._kept().items()}
        for name in ("positions", "documents", "padding"):
            value = getattr(self, name)
            changes[name] = None if value is None else of_facts(value)
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class KeyValues(Cache):
    """Keys, before rotation, and values.

    Keys are kept unrotated so that an encoding whose angles change with length, and a mechanism that re-places what
    it retrieves, need no second copy.

    Args:
        k: ``[batch, heads, time, head_dim]``.
        v: ``[batch, heads, time, head_dim]``.
        features: what the position encoding must know of each key, ``[batch, heads, time, any]``, or None.
    """

    k: Tensor
    v: Tensor
    features: Tensor | None = None

    @staticmethod
    def of(k: Tensor, v: Tensor, features: Tensor | None, context: Context) -> KeyValues:
        """The keys and values of the tokens that ``context`` describes."""
        return KeyValues(
            k,
            v,
            features,
            positions=context.positions,
            documents=context.documents,
            padding=context.padding,
            consecutive=context.consecutive,
        )
