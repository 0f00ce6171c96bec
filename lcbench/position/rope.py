"""Rotary position embedding (RoPE).

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv 2104.09864.

    theta_a = base^(-2a / r),  a = 0 .. r/2 - 1
    (x_1, x_2) -> (x_1 cos(p theta_a) - x_2 sin(p theta_a),  x_1 sin(p theta_a) + x_2 cos(p theta_a))

for each pair a of channels of a query or key at position p. Values are not turned. The score ``c * q'_i . k'_j`` then
depends on ``i - j`` only.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding

Pairing = Literal["interleaved", "halves"]


def at_least_one(key: str, value: float) -> float:
    """``value``, if it is a factor that stretches."""
    if value < 1:
        raise ConfigurationError(f"{key}={value} would shorten the window; the closest choice is 1.")
    return value


class Rope(PositionEncoding):
    """Queries and keys are turned by angles proportional to their positions.

    Args:
        shape: the network's shape.
        base: of the frequencies; the slowest pair turns once in about ``2 pi base`` positions.
        pairing: which channels form pair a: 2a and 2a + 1 (the paper), or a and a + r/2 (LLaMA-style code). A model
            trained with one cannot be read with the other.
        channels: r, how many channels of a head are turned; None: all.
    """

    def __init__(
        self,
        shape: LayerShape,
        *,
        base: float = 10000.0,
        pairing: Pairing = "interleaved",
        channels: int | None = None,
    ) -> None:
        super().__init__(shape)
        self.base = base
        self.channels = shape.head_dim if channels is None else channels
        if self.channels % 2 or not 0 < self.channels <= shape.head_dim:
            closest = max(2, min(self.channels, shape.head_dim) // 2 * 2)
            what = "position.channels" if channels is not None else "the head dimension d_model / n_heads"
            raise ConfigurationError(
                f"{what}={self.channels} cannot be turned in pairs: an even number of at most "
                f"{shape.head_dim} is needed; the closest is {closest}."
            )
        # where the two members of a pair lie
        half = self.channels // 2
        interleaved = pairing == "interleaved"
        self.first = slice(0, self.channels, 2) if interleaved else slice(0, half)
        self.second = slice(1, self.channels, 2) if interleaved else slice(half, self.channels)
        self._join = _interleave if interleaved else _append

    def frequencies(self) -> Tensor:
        """theta, ``[channels / 2]``, float64."""
        return self.base ** (-torch.arange(0, self.channels, 2, dtype=torch.float64, device="cpu") / self.channels)

    def ntk_exponent(self) -> float:
        """``r / (r - 2)``: the power of a scale by which the base grows if the lowest frequency is divided by it."""
        if self.channels == 2:
            raise ConfigurationError("position.channels=2 has a single frequency; the closest choice is 4.")
        return self.channels / (self.channels - 2)

    def magnitude(self) -> float:
        """What turned channels are multiplied by."""
        return 1.0

    def rotate(self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor) -> tuple[Tensor, Tensor]:
        return self._rotated(q, q_positions), self._rotated(k, k_positions)

    def _rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x`` ``[batch, heads, time, head_dim]`` turned by ``positions`` ``[batch, time]``."""
        # in bfloat16, positions beyond a few hundred are no longer told apart
        dtype = torch.promote_types(x.dtype, torch.float32)
        angles = positions[:, None, :, None].to(dtype) * self.frequencies().to(
            x.device, dtype
        )  # [batch, 1, time, r/2]
        cos, sin = angles.cos() * self.magnitude(), angles.sin() * self.magnitude()
        if self._join is _interleave and not torch.compiler.is_compiling():
            part = x if self.channels == x.shape[-1] else x[..., : self.channels]
            turned = _turned(part.to(dtype), cos, sin).to(x.dtype)
        else:
            x_1, x_2 = x[..., self.first], x[..., self.second]
            turned = self._join(x_1 * cos - x_2 * sin, x_1 * sin + x_2 * cos).to(x.dtype)
        return turned if self.channels == x.shape[-1] else torch.cat([turned, x[..., self.channels :]], -1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbouring channels turned: one product of complex numbers, several times as fast as six of real ones."""
    if any(stride % 2 for stride in x.stride()[:-1]) or x.storage_offset() % 2:
        x = x.contiguous()
    # [batch, time, heads, channels / 2], as projections and kernels lay it out: the gradient is then not copied
    pairs = torch.view_as_complex(x.transpose(1, 2).unflatten(-1, (-1, 2)))
    turned = pairs * torch.complex(cos, sin).transpose(1, 2)
    return torch.view_as_real(turned).flatten(-2).transpose(1, 2)


def _interleave(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first, second], -1).flatten(-2)


def _append(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], -1)
