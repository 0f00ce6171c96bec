"""Sinusoidal absolute positions.

Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762. Added to the token embeddings:

    t[p, 2a] = sin(p / 10000^(2a / d_model)),  t[p, 2a + 1] = cos(p / 10000^(2a / d_model)),  a = 0 .. d_model/2 - 1

Any position can be read; far beyond those of training, models usually fail.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding


class AbsoluteSinusoidal(PositionEncoding):
    """Sine and cosine waves of ``d_model / 2`` wavelengths; no parameters.

    Args:
        shape: the network's shape; ``d_model`` is even.
    """

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape)
        if shape.d_model % 2:
            raise ConfigurationError(
                f"model.d_model={shape.d_model} has no pairs of sine and cosine; the closest even number is "
                f"{shape.d_model + 1}."
            )

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        exponents = torch.arange(0, self.shape.d_model, 2, device=x.device, dtype=dtype) / self.shape.d_model
        angles = positions[..., None].to(dtype) * 10000.0**-exponents  # [batch, time, d_model / 2]
        return x + torch.stack([angles.sin(), angles.cos()], -1).flatten(-2).to(x.dtype)
