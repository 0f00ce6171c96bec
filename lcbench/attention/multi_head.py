"""What mechanisms with heads share: the maps into queries, keys and values, and the map back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lcbench.attention.base import Attention, Context
from lcbench.attention.cache import KeyValues
from lcbench.position.base import LayerShape, PositionEncoding


class MultiHead(Attention):
    """Attention by heads: ``q = W_q x``, ``k = W_k x``, ``v = W_v x``, and ``y = W_o o`` (Vaswani et al. 2017)."""

    def __init__(self, shape: LayerShape, position: PositionEncoding) -> None:
        super().__init__(shape, position)
        self.q = nn.Linear(shape.d_model, shape.d_model, bias=shape.bias)
        self.k = nn.Linear(shape.d_model, shape.d_model, bias=shape.bias)
        self.v = nn.Linear(shape.d_model, shape.d_model, bias=shape.bias)
        self.output = shape.into_residual(nn.Linear(shape.d_model, shape.d_model, bias=shape.bias))

    @property
    def dropped(self) -> float:
        """Probability of dropping an attention weight now."""
        return self.shape.dropout if self.training else 0.0

    def split(self, x: Tensor) -> Tensor:
        """``[batch, time, d_model]`` to ``[batch, heads, time, head_dim]``."""
        return x.unflatten(-1, (self.shape.n_heads, self.shape.head_dim)).transpose(1, 2)

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, KeyValues]:
        """Queries ``[batch, heads, time, head_dim]``, and keys and values, of ``x`` ``[batch, time, d_model]``."""
        q, k, v = (self.split(project(x)) for project in (self.q, self.k, self.v))
        q, k = self.compared(q, k)
        return q, KeyValues.of(k, v, self.position.key_features(x, k, v), context)

    def compared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """What scores are products of, made of queries and keys ``[batch, heads, time, head_dim]``."""
        return q, k

    def merge(self, o: Tensor) -> Tensor:
        """What the heads read, ``[batch, heads, time, head_dim]``, to ``[batch, time, d_model]``."""
        return self.output(o.transpose(1, 2).flatten(2))

    def key_bytes(self, itemsize: int) -> int:
        """Bytes of one token's keys, values and features, activations of ``itemsize``, and its position (int64)."""
        per_head = 2 * self.shape.head_dim + self.position.feature_width
        return self.shape.n_heads * per_head * itemsize + 8


class HeadGroups:
    """Heads that read alike, in groups.

    Args:
        groups: the numbers of the heads of each group; every head is in one.
    """

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        self.groups = [list(heads) for heads in groups]
        self._order = [head for heads in self.groups for head in heads]
        self._sorted = self._order == sorted(self._order)

    def split(self, tensor: Tensor) -> Sequence[Tensor]:
        """``[batch, heads, time, any]`` to one ``[batch, some heads, time, any]`` a group."""
        if len(self.groups) == 1:
            return [tensor]
        # heads behind time, as projections lay them out: the gradient is then not copied
        parts = self._ordered(tensor, self._order).transpose(1, 2).split([len(heads) for heads in self.groups], 2)
        return [part.transpose(1, 2) for part in parts]

    def split_keys(self, keys: KeyValues) -> list[KeyValues]:
        """The same of keys, values and features."""
        features = [None] * len(self.groups) if keys.features is None else self.split(keys.features)
        parts = zip(self.split(keys.k), self.split(keys.v), features, strict=True)
        return [dataclasses.replace(keys, k=k, v=v, features=f) for k, v, f in parts]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """What ``split`` has cut, put together again."""
        if len(parts) == 1:
            return parts[0]
        order = sorted(range(len(self._order)), key=self._order.__getitem__)
        whole = torch.cat([part.transpose(1, 2) for part in parts], 2).transpose(1, 2)
        return self._ordered(whole, order)

    def _ordered(self, tensor: Tensor, order: list[int]) -> Tensor:
        return tensor if self._sorted else tensor.index_select(1, torch.tensor(order, device=tensor.device))
