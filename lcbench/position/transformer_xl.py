"""Transformer-XL's relative positions: a projected sinusoid of the distance, and two global biases.

Dai et al., "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", 2019, arXiv 1901.02860.

    score = c * ((q_i + u) . k_j + (q_i + w) . (W_R r_n)),  n = i - j
    r_n = [sin(n f) | cos(n f)],  f_a = 10000^(-2a / d_model),  a = 0 .. d_model/2 - 1

W_R has no bias and belongs to a layer; u and w, ``[heads, head_dim]``, are shared by all layers, as in the authors'
PyTorch code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lcbench.errors import ConfigurationError
from lcbench.position.base import Alignment, LayerShape, PositionEncoding, shift


class TransformerXL(PositionEncoding):
    """Sinusoids of distances, read through a learned map. All parameters are drawn from a normal distribution of
    standard deviation 0.02, the authors' setting.

    Args:
        shape: the network's shape; ``d_model`` is even.
        clamp_length: distances beyond it count as it, in evaluation only; None: never.
    """

    reads_scores = False

    def __init__(self, shape: LayerShape, *, clamp_length: int | None = None) -> None:
        super().__init__(shape)
        if shape.d_model % 2:
            raise ConfigurationError(
                f"model.d_model={shape.d_model} has no pairs of sine and cosine; the closest even number is "
                f"{shape.d_model + 1}."
            )
        self.clamp_length = clamp_length
        self.relative = nn.Linear(shape.d_model, shape.d_model, bias=False)  # W_R
        self.u = nn.Parameter(torch.empty(shape.n_heads, shape.head_dim))
        self.w = nn.Parameter(torch.empty(shape.n_heads, shape.head_dim))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def share(self, first: PositionEncoding) -> None:
        if isinstance(first, TransformerXL):
            self.u, self.w = first.u, first.w

    def distance_vectors(self, distances: Tensor) -> Tensor:
        """W_R r_n, ``[heads, distances, head_dim]``."""
        angles = self.clamped(distances)[:, None] * self.frequencies(distances.device, self.u.dtype)
        r = torch.cat([angles.sin(), angles.cos()], -1)  # [distances, d_model]
        return self.relative(r).unflatten(-1, (self.shape.n_heads, self.shape.head_dim)).transpose(0, 1)[self.heads]

    def content_bias(
        self,
        q: Tensor,
        k: Tensor,
        scores: Tensor,
        features: Tensor | None,
        alignment: Alignment,
        visible: Tensor,
    ) -> Tensor:
        c = q.shape[-1] ** -0.5
        u, w = (
            c * bias[:, None].to(q.dtype) for bias in (self.u[self.heads], self.w[self.heads])
        )  # [heads, 1, head_dim]
        content = torch.matmul(u, k.transpose(-1, -2))  # [batch, heads, 1, k_time]
        if alignment.vectors is None:
            return content + self.jumping(c * q + w, alignment)
        return content + shift(torch.matmul(c * q + w, alignment.vectors.to(q.dtype).transpose(-1, -2)))

    def jumping(self, q: Tensor, alignment: Alignment) -> Tensor:
        """``q . W_R r_n`` where distances do not follow from places: ``[batch, heads, q_time, k_time]``.

        With ``y = W_R^T q`` it is ``y . r_{i-j}``, and sine and cosine of ``(i - j) f`` are sums of products of those
        of ``i f`` and of ``j f``: a scalar product again. Clamped distances are few enough for a table.
        """
        if self.clamp_length is not None and not self.training:
            known = self.distance_vectors(torch.arange(self.clamp_length + 1, device=q.device))
            logits = torch.matmul(q, known.to(q.dtype).transpose(-1, -2))  # [batch, heads, q_time, clamp_length + 1]
            distances = self.clamped(alignment.distances()).clamp(min=0)
            return logits.gather(-1, distances[:, None].expand(*q.shape[:2], -1, -1))
        dtype = torch.promote_types(q.dtype, torch.float32)
        projection = self.relative.weight.to(dtype).unflatten(0, (self.shape.n_heads, self.shape.head_dim))[self.heads]
        y_sin, y_cos = torch.matmul(q.to(dtype), projection).chunk(2, -1)  # [batch, heads, q_time, d_model / 2]
        f = self.frequencies(q.device, dtype)
        i = alignment.q_positions[:, None, :, None] * f  # [batch, 1, q_time, d_model / 2]
        j = alignment.k_positions[:, None, :, None] * f
        turned = torch.cat([y_sin * i.sin() + y_cos * i.cos(), y_cos * i.sin() - y_sin * i.cos()], -1)
        return torch.matmul(turned, torch.cat([j.cos(), j.sin()], -1).transpose(-1, -2))

    def clamped(self, distances: Tensor) -> Tensor:
        if self.clamp_length is None or self.training:
            return distances
        return distances.clamp(max=self.clamp_length)

    def frequencies(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """f, ``[d_model / 2]``."""
        d_model = self.shape.d_model
        return 10000.0 ** -(torch.arange(0, d_model, 2, device=device, dtype=dtype) / d_model)
