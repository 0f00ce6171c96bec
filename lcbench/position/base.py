"""The interface of a position encoding: how order enters attention.

Notation used in every encoding: query position i, key position j, distance ``n = i - j``, ``s_ij = q_i . k_j``,
``c = 1 / sqrt(head_dim)``. A score is what enters the softmax: ``c * s_ij + bias``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from lcbench.errors import ConfigurationError


@dataclass(frozen=True)
class LayerShape:
    """What a layer is told about the network it sits in.

    Args:
        d_model: width of the residual stream.
        n_heads: heads of one layer; divides ``d_model``.
        layer: index of the layer, from 0.
        bias: whether linear maps have biases.
        dropout: probability of dropping an attention weight in training.
        residual_scale: factor on the initial weights and biases of a layer's map back into the residual stream.
        n_layers: layers of the network.

    Raises:
        ConfigurationError: if ``n_heads`` does not divide ``d_model``.
    """

    d_model: int
    n_heads: int
    layer: int = 0
    bias: bool = True
    dropout: float = 0.0
    residual_scale: float = 1.0
    n_layers: int = 1

    def __post_init__(self) -> None:
        if self.n_heads < 1 or self.d_model % self.n_heads:
            divisors = [h for h in range(1, self.d_model + 1) if self.d_model % h == 0]
            closest = min(divisors, key=lambda h: abs(h - self.n_heads))
            raise ConfigurationError(
                f"model.n_heads={self.n_heads} does not divide model.d_model={self.d_model}; "
                f"the closest that does is model.n_heads={closest}."
            )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    def into_residual(self, output: nn.Linear) -> nn.Linear:
        """``output``, a layer's map back into the residual stream, scaled as the network wants it at the start."""
        with torch.no_grad():
            for parameter in output.parameters():
                parameter.mul_(self.residual_scale)
        return output


@dataclass(frozen=True)
class Alignment:
    """Where a block of queries stands among its keys.

    Args:
        q_positions: ``[batch, q_time]``, true positions of the queries.
        k_positions: ``[batch, k_time]``, true positions of the keys.
        offset: index of the first query among the keys, if the distance of every visible pair is
            ``offset + row - column``; None if positions jump, and distances must be taken from them.
        vectors: what ``PositionEncoding.distance_vectors`` made of ``all_distances``,
            ``[1 or heads, q_time + k_time - 1, any]``; None if it makes nothing or positions jump.
    """

    q_positions: Tensor
    k_positions: Tensor
    offset: int | None
    vectors: Tensor | None = None

    def distances(self) -> Tensor:
        """``n = i - j``, ``[1 or batch, q_time, k_time]``; meaningless (perhaps negative) where a pair is hidden."""
        if self.offset is None:
            return self.q_positions[:, :, None] - self.k_positions[:, None, :]
        device = self.q_positions.device
        rows = torch.arange(self.q_positions.shape[1], device=device) + self.offset
        columns = torch.arange(self.k_positions.shape[1], device=device)
        return (rows[:, None] - columns[None, :])[None]

    def all_distances(self) -> Tensor:
        """Every distance of the block once, largest first: ``[q_time + k_time - 1]``; needs ``offset``.

        ``shift`` and ``spread`` bring what was computed for these to the pairs.
        """
        if self.offset is None:
            raise ValueError("positions jump: no single row of distances serves all queries")
        q_time, k_time = self.q_positions.shape[1], self.k_positions.shape[1]
        return self.offset + q_time - 1 - torch.arange(q_time + k_time - 1, device=self.q_positions.device)


def shift(by_distance: Tensor) -> Tensor:
    """From ``[..., q_time, q_time + k_time - 1]``, whose last axis follows ``Alignment.all_distances``, to the pairs
    ``[..., q_time, k_time]``.

    Row r needs columns ``q_time - 1 - r`` and on, so in the flattened matrix each row begins one element less than
    a row's width after the one before: a view, no gather (Transformer-XL's relative shift, for any number of keys).
    """
    q_time, width = by_distance.shape[-2:]
    if q_time == 1:
        return by_distance
    flat = by_distance.flatten(-2).narrow(-1, q_time - 1, q_time * (width - 1))
    return flat.unflatten(-1, (q_time, width - 1))[..., : width - q_time + 1]


def spread(by_distance: Tensor, q_time: int) -> Tensor:
    """From ``[..., q_time + k_time - 1]``, the same for all queries, to the pairs ``[..., q_time, k_time]``."""
    return by_distance.unfold(-1, by_distance.shape[-1] - q_time + 1, 1).flip(-2)


@dataclass(frozen=True)
class Counts:
    """What contextual positions were made of, all ``[batch, heads, q_time, k_time]``.

    Args:
        gates: how much each key counts for each query, from 0 to 1; 0 where a pair is hidden.
        positions: of each key, what was counted from it to the query.
    """

    gates: Tensor
    positions: Tensor


class PositionEncoding(nn.Module):
    """How order enters attention. A subclass overrides only what it changes; this class itself encodes nothing.

    A layer owns one encoding. A subclass's constructor takes the ``LayerShape`` first, then its own options as
    keyword-only arguments: those are its configuration.
    """

    #: positions 0 .. max_length - 1 can be encoded; None: any.
    max_length: int | None = None
    #: last dimension of ``key_features``: numbers cached per key and head beyond ``k`` and ``v``.
    feature_width: int = 0
    #: numbers ``content_bias`` makes for each pair of query and key; blocks of queries shrink by it.
    pair_width: int = 1
    #: whether the bias of a key depends on all keys between it and the query, so that none of them may be left out.
    reads_between: bool = False
    #: whether ``content_bias`` reads ``scores`` or keeps numbers of a pair; if not, it is handed no scores.
    reads_scores: bool = True
    #: the heads that queries and keys are of; see ``of_heads``.
    heads: slice | list[int] = slice(None)

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape

    def share(self, first: PositionEncoding) -> None:
        """Called on the encoding of every later layer with that of layer 0: adopt the parameters all layers share."""

    def of_heads(self, heads: slice | list[int]) -> Self:
        """The same encoding, with the same parameters, for a mechanism that scores some of the layer's heads alone.

        What differs between heads, parameters or buffers, is to be indexed by ``self.heads`` when scores are made.
        """
        view = copy.copy(self)
        view.heads = heads
        return view

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Add to the input embeddings; called once, on the encoding of layer 0.

        ``x`` ``[batch, time, d_model]``, ``positions`` ``[batch, time]``; returns the shape of ``x``.
        """
        return x

    def rotate(self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor) -> tuple[Tensor, Tensor]:
        """Turn queries ``[batch, heads, q_time, head_dim]`` and keys ``[batch, heads, k_time, head_dim]`` by their
        positions ``[batch, q_time]``, ``[batch, k_time]``."""
        return q, k

    def position_bias(self, alignment: Alignment) -> Tensor | None:
        """A bias that needs positions only: ``[1 or batch, 1 or heads, q_time, k_time]``, or None."""
        return None

    def key_features(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
        """What ``content_bias`` must know of each key beyond ``k``: ``[batch, heads, time, any]``, or None.

        Computed once from the layer's input ``x`` ``[batch, time, d_model]`` and the token's unrotated ``k`` and
        ``v`` ``[batch, heads, time, head_dim]``, then cached with the key.
        """
        return None

    def distance_vectors(self, distances: Tensor) -> Tensor | None:
        """What ``content_bias`` must know of each distance, ``[any]`` to ``[1 or heads, any, width]``, or None.

        Computed once a call and not once a block, where positions do not jump; ``content_bias`` finds it in
        ``alignment.vectors``, zero for distances below 0, which causal attention hides.
        """
        return None

    @property
    def reads_ahead(self) -> bool:
        """Whether a query may see keys after it: not where a bias is made for distances from 0 on."""
        bias = type(self).position_bias, type(self).content_bias
        return bias == (PositionEncoding.position_bias, PositionEncoding.content_bias)

    def reads_content(self, k_positions: Tensor) -> bool:
        """Whether scores need ``content_bias`` (the explicit path) for keys at these positions ``[batch, k_time]``."""
        return type(self).content_bias is not PositionEncoding.content_bias

    def content_bias(
        self,
        q: Tensor,
        k: Tensor,
        scores: Tensor,
        features: Tensor | None,
        alignment: Alignment,
        visible: Tensor,
    ) -> Tensor:
        """A bias that needs queries, keys or scores, for one block of queries: it never sees the whole T x T.

        Args:
            q: unrotated queries, ``[batch, heads, q_time, head_dim]``.
            k: unrotated keys, ``[batch, heads, k_time, head_dim]``.
            scores: ``c * s_ij`` after rotation, ``[batch, heads, q_time, k_time]``, in float32 or wider; the least
                finite number where a pair is not visible, so that its sigmoid is 0. Empty unless ``reads_scores``.
            features: ``key_features`` of the keys, or None.
            alignment: where the block stands.
            visible: which pairs count, bool ``[1 or batch, 1, q_time, k_time]``.

        Returns:
            The bias added to ``scores``, ``[batch, heads, q_time, k_time]``; anything finite where a pair is not
            visible. Must be differentiable by autograd; it is recomputed in the backward pass, block by block.
            Autocast is off: parameters are to be cast to the dtype of ``q`` or of ``scores``.
        """
        raise TypeError(f"{type(self).__name__} has no content bias")

    def counts(self, q: Tensor, k: Tensor, scores: Tensor, features: Tensor | None, visible: Tensor) -> Counts | None:
        """What ``content_bias``, of the same arguments, counts; None if it counts nothing. To be looked at: no
        gradient."""
        return None
