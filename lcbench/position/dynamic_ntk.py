"""Dynamic NTK-aware interpolation: the base of the rotary frequencies follows the current length.

A public post of July 2023 ("dynamically scaled RoPE", emozilla); described in YaRN, Peng et al. 2023, arXiv
2309.00071. With trained window L, current length l and r turned channels:

    base' = base * s^(r / (r - 2)),  s = max(1, f l / L - (f - 1))

f = 1 is the definition, ``s = max(1, l / L)``; other factors f are a widespread library's.

The current length is that of the query: ``l = i + 1`` at position i. That is what a decoder sees that generates token
by token, turning its cached keys anew at each step, and it makes results independent of how a text is cut into calls;
the length of the call would not. Inside the window this is RoPE. Beyond it every query turns all its keys by its own
frequencies, which no single rotation of the keys can express: the score is then put together pair by pair,

    q_i . R(-n theta_i) k_j = sum_a cos(n theta_ia) (q_1 k_1 + q_2 k_2) + sin(n theta_ia) (q_1 k_2 - q_2 k_1)

over channel pairs a, n = i - j, which costs a cosine and a sine per pair of query and key and pair of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lcbench.position.base import Alignment, LayerShape
from lcbench.position.rope import Pairing, Rope, at_least_one


class DynamicNtk(Rope):
    """RoPE inside the trained window; beyond it, every query raises the base to suit its own position.

    Args:
        shape: the network's shape.
        context: L, the trained window.
        factor: f above.
        base, pairing, channels: as in ``Rope``.
    """

    def __init__(
        self,
        shape: LayerShape,
        *,
        context: int,
        factor: float = 1.0,
        base: float = 10000.0,
        pairing: Pairing = "interleaved",
        channels: int | None = None,
    ) -> None:
        super().__init__(shape, base=base, pairing=pairing, channels=channels)
        self.context = context
        self.factor = at_least_one("position.factor", factor)
        self.exponent = self.ntk_exponent()
        self.pair_width = self.channels // 2

    def reads_content(self, k_positions: Tensor) -> bool:
        """Whether any key lies beyond the trained window. It looks at the positions: their number does not tell, since
        a cache or a window may begin anywhere; without data (device meta) it is taken to begin at 0."""
        if k_positions.untyped_storage().device.type == "meta":
            return k_positions.shape[1] > self.context
        return bool((k_positions >= self.context).any())

    def content_bias(
        self,
        q: Tensor,
        k: Tensor,
        scores: Tensor,
        features: Tensor | None,
        alignment: Alignment,
        visible: Tensor,
    ) -> Tensor:
        """The score with the query's own frequencies, less the score with RoPE's; 0 for queries in the window."""
        length = (alignment.q_positions + 1).to(scores.dtype)  # [batch, q_time]
        s = (self.factor * length / self.context - (self.factor - 1)).clamp(min=1)
        a = torch.arange(0, self.channels, 2, device=q.device, dtype=scores.dtype) / self.channels
        theta = (self.base * s[:, :, None] ** self.exponent) ** -a  # [batch, q_time, channels / 2]
        angles = (alignment.distances()[..., None] * theta[:, :, None])[:, None]
        # [batch, 1, q_time, k_time, channels / 2]

        q, k = q.to(scores.dtype), k.to(scores.dtype)
        # [batch, heads, q_time, 1, channels / 2] and [batch, heads, 1, k_time, channels / 2]
        q_1, q_2 = q[:, :, :, None, self.first], q[:, :, :, None, self.second]
        k_1, k_2 = k[:, :, None, :, self.first], k[:, :, None, :, self.second]
        pairs = angles.cos() * (q_1 * k_1 + q_2 * k_2) + angles.sin() * (q_1 * k_2 - q_2 * k_1)
        product = pairs.sum(-1) + torch.matmul(q[..., self.channels :], k[..., self.channels :].transpose(-1, -2))
        beyond = (s > 1)[:, None, :, None] & visible
        return torch.where(beyond, product * q.shape[-1] ** -0.5 - scores, 0.0)
