"""ALiBi: attention with linear biases.

Press, Smith, Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", 2022,
arXiv 2108.12409.

    score = c * s_ij - m_h n,  n = i - j,  m_h = 2^(-8 h / H),  h = 1 .. H

for H a power of two. Otherwise, with P the power of two below H: the P slopes, then the 1st, 3rd, 5th, ... of those
for 2P heads. The bias is the true ``-m_h n``; the authors' code has ``m_h j``, equal only up to a constant per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lcbench.position.base import Alignment, LayerShape, PositionEncoding


def slopes(n_heads: int) -> list[float]:
    """m_h of every head."""
    power = 2 ** (n_heads.bit_length() - 1)
    of_power = [2.0 ** (-8 * h / power) for h in range(1, power + 1)]
    of_double = [2.0 ** (-4 * h / power) for h in range(1, 2 * power + 1)]
    return of_power + of_double[0::2][: n_heads - power]


class Alibi(PositionEncoding):
    """Every head lowers scores in proportion to distance, each at its own rate; no parameters."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape)
        self.register_buffer("m", torch.tensor(slopes(shape.n_heads))[:, None, None], persistent=False)

    def position_bias(self, alignment: Alignment) -> Tensor:
        """``[1 or batch, heads, q_time, k_time]``."""
        m = self.get_buffer("m")[self.heads]  # [heads, 1, 1]
        return -m.to(torch.promote_types(m.dtype, torch.float32)) * alignment.distances()[:, None]
