"""The decoder: a stack of causal attention and feed-forward layers over token embeddings.

Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762; pre-norm as in Xiong et al. 2020, arXiv 2002.04745;
RMS norm: Zhang and Sennrich 2019, arXiv 1910.07467; SwiGLU: Shazeer 2020, arXiv 2002.05202.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcbench.attention.base import Attention, AttentionOutput, Context, Facts, Run, State
from lcbench.model.base import Model, ModelOutput, ModelState, Placement, check_network, place
from lcbench.position.base import LayerShape, PositionEncoding


class FeedForward(nn.Module):
    """``W_2 dropout(f(W_1 x + b_1)) + b_2`` with ``f`` ReLU or (exact) GELU."""

    def __init__(self, shape: LayerShape, d_ff: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = nn.Linear(shape.d_model, d_ff, bias=shape.bias)
        self.activation = activation
        self.dropout = nn.Dropout(shape.dropout)
        self.output = shape.into_residual(nn.Linear(d_ff, shape.d_model, bias=shape.bias))

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, time, d_model]`` to the same shape."""
        return self.output(self.dropout(self.activation(self.inner(x))))


class SwiGLU(nn.Module):
    """``W_2 dropout(silu(W_g x + b_g) * (W_1 x + b_1)) + b_2``."""

    def __init__(self, shape: LayerShape, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.d_model, d_ff, bias=shape.bias)
        self.inner = nn.Linear(shape.d_model, d_ff, bias=shape.bias)
        self.dropout = nn.Dropout(shape.dropout)
        self.output = shape.into_residual(nn.Linear(d_ff, shape.d_model, bias=shape.bias))

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, time, d_model]`` to the same shape."""
        return self.output(self.dropout(F.silu(self.gate(x)) * self.inner(x)))


class Layer(nn.Module):
    """Attention, then a feed-forward network, each with its norm; subclasses say where the norms stand."""

    def __init__(
        self,
        attention: Attention,
        feed_forward: nn.Module,
        attention_norm: nn.Module,
        feed_forward_norm: nn.Module,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)

    def attended(self, x: Tensor, context: Context, state: State | None, runs: Sequence[Run]) -> AttentionOutput:
        """What attention makes of ``x`` ``[batch, time, d_model]``; ``runs`` as for ``Decoder.read``."""
        if runs:
            return self.attention.read_runs(x, context, runs, state)  # type: ignore[no-any-return, operator]
        return self.attention(x, context, state)  # type: ignore[no-any-return]


class PreNormLayer(Layer):
    """``x + dropout(attention(norm(x)))``, then ``x + dropout(feed_forward(norm(x)))``."""

    def forward(
        self, x: Tensor, context: Context, state: State | None, runs: Sequence[Run] = ()
    ) -> tuple[AttentionOutput, Tensor]:
        """The output and what the feed-forward network read; ``x`` and both ``[batch, time, d_model]``."""
        attended = self.attended(self.attention_norm(x), context, state, runs)
        x = x + self.dropout(attended.y)
        read = self.feed_forward_norm(x)
        x = x + self.dropout(self.feed_forward(read))
        return replace(attended, y=x), read


class PostNormLayer(Layer):
    """``norm(x + dropout(attention(x)))``, then ``norm(x + dropout(feed_forward(x)))``."""

    def forward(
        self, x: Tensor, context: Context, state: State | None, runs: Sequence[Run] = ()
    ) -> tuple[AttentionOutput, Tensor]:
        """The output and what the feed-forward network read; ``x`` and both ``[batch, time, d_model]``."""
        attended = self.attended(x, context, state, runs)
        read = self.attention_norm(x + self.dropout(attended.y))
        x = self.feed_forward_norm(read + self.dropout(self.feed_forward(read)))
        return replace(attended, y=x), read


class Decoder(Model):
    """A causal language model of ``n_layers`` layers, each attention and then a feed-forward network.

    With pre-norm, a norm stands before the output map; with post-norm every layer ends in one already. The output map
    has no bias. With dropout p, embeddings, attention weights, the feed-forward network's inner activations, and what
    each half of a layer adds to the stream are dropped with probability p.

    Initialisation: embeddings normal with standard deviation ``d_model ** -0.5``; linear maps as torch has them,
    weights and biases uniform within ``fan_in ** -0.5`` either side of 0; norms one and zero. With pre-norm, the maps
    that write to the residual stream (an attention's output map and ``W_2``) are then divided by
    ``sqrt(2 * n_layers)``: the stream sums ``2 * n_layers`` of them, and its variance should not grow with depth.

    Args:
        vocabulary_size: number of token ids.
        attention: makes a layer's attention from its shape and its position encoding.
        position: makes a layer's position encoding from its shape; that of layer 0 embeds, later ones adopt from it
            what all layers share.
        d_model: width of the residual stream.
        n_layers: number of layers.
        n_heads: heads per layer.
        d_ff: inner width of the feed-forward network; None: ``4 * d_model``, or for SwiGLU, which has three maps
            instead of two, the multiple of 8 closest to ``8/3 * d_model``.
        norm: layer norm (eps 1e-5) or RMS norm (eps 1e-6).
        norm_position: before attention and feed-forward network (pre) or after adding them (post).
        activation: of the feed-forward network.
        tie_embeddings: whether the output map is the embedding table.
        dropout: probability of dropping.
        bias: whether linear maps and layer norms have biases.
    """

    def __init__(
        self,
        vocabulary_size: int,
        attention: Callable[[LayerShape, PositionEncoding], Attention],
        position: Callable[[LayerShape], PositionEncoding],
        *,
        d_model: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        d_ff: int | None = None,
        norm: Literal["layer", "rms"] = "layer",
        norm_position: Literal["pre", "post"] = "pre",
        activation: Literal["relu", "gelu", "swiglu"] = "gelu",
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if d_ff is None:
            d_ff = max(8, 8 * round(d_model / 3)) if activation == "swiglu" else 4 * d_model
        check_network({"d_model": d_model, "n_layers": n_layers, "d_ff": d_ff}, dropout)
        self.d_model = d_model
        pre = norm_position == "pre"

        def make_feed_forward(shape: LayerShape) -> nn.Module:
            if activation == "swiglu":
                return SwiGLU(shape, d_ff)
            return FeedForward(shape, d_ff, F.relu if activation == "relu" else F.gelu)

        def make_norm() -> nn.Module:
            return nn.LayerNorm(d_model, eps=1e-5, bias=bias) if norm == "layer" else nn.RMSNorm(d_model, eps=1e-6)

        residual_scale = (2 * n_layers) ** -0.5 if pre else 1.0
        shapes = [
            LayerShape(d_model, n_heads, layer, bias, dropout, residual_scale, n_layers) for layer in range(n_layers)
        ]
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        self.dropout = nn.Dropout(dropout)
        encodings = [position(shape) for shape in shapes]
        for later in encodings[1:]:
            later.share(encodings[0])
        layer_type = PreNormLayer if pre else PostNormLayer
        self.layers = nn.ModuleList(
            layer_type(attention(shape, encoding), make_feed_forward(shape), make_norm(), make_norm(), dropout)
            for shape, encoding in zip(shapes, encodings, strict=True)
        )
        for attention_of_later in self.attentions[1:]:
            attention_of_later.share(self.attentions[0])
        self.final_norm = make_norm() if pre else nn.Identity()
        self.output = nn.Linear(d_model, vocabulary_size, bias=False)
        if tie_embeddings:
            self.output.weight = self.embedding.weight

    @property
    def described(self) -> str:
        """What decides the shape of its state, in words."""
        shape = self.attentions[0].shape
        kinds = " and ".join(dict.fromkeys(type(attention).__name__ for attention in self.attentions))
        segments = f", segments of {self.segment}" if self.segment else ""
        return f"{len(self.layers)} layers of {kinds}, width {self.d_model}, {shape.n_heads} heads{segments}"

    @property
    def attentions(self) -> list[Attention]:
        """The attention of every layer, from the first."""
        return [layer.attention for layer in self.layers]  # type: ignore[misc]

    def forward(self, tokens: Tensor, context: Facts | None = None, state: ModelState | None = None) -> ModelOutput:
        """See ``Model.forward``: ``tokens`` ``[batch, time]``, logits ``[batch, time, vocabulary]``."""
        return self.read(self.embedding(tokens), place(tokens, context, state, self.described), state)

    def read(
        self, x: Tensor, placement: Placement, state: ModelState | None = None, runs: Sequence[Run] = ()
    ) -> ModelOutput:
        """The same of embedded tokens ``x`` ``[batch, time, d_model]``, placed already; ``runs`` as for
        ``Attention.read_runs``, or empty: all tokens as ``placement`` says."""
        x = self.dropout(self.attentions[0].position.embed(x, placement.context.positions))
        before = [None] * len(self.layers) if state is None else state.layers
        states: list[State | None] = []
        losses: dict[str, Tensor] = {}
        measures: dict[str, Tensor] = {}
        for number, (layer, layer_state) in enumerate(zip(self.layers, before, strict=True)):
            output, keys = layer(x, placement.context, layer_state, runs)
            x = output.y
            states.append(output.state)
            for name, loss in output.losses.items():
                losses[name] = losses[name] + loss if name in losses else loss
            measures |= {f"layer_{number}/{name}": value for name, value in output.measures.items()}
        hidden = self.final_norm(x)
        reached = replace(placement.reached, layers=tuple(states))
        return ModelOutput(self.output, self.output.out_features, reached, hidden, keys, losses, measures)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """See ``Model.state_bytes``."""
        next_position = 8 * batch
        return next_position + sum(attention.state_bytes(batch, length, dtype) for attention in self.attentions)
