"""YaRN: rotary frequencies interpolated by parts, and a temperature.

Peng, Quesnelle, Fan, Shippole, "YaRN: Efficient Context Window Extension of Large Language Models", 2023,
arXiv 2309.00071. With L the original window, s = L' / L, and r turned channels:

    theta'_a = (1 - g_a) theta_a / s + g_a theta_a
    g_a = clip((turns_a - alpha) / (beta - alpha), 0, 1),  turns_a = L theta_a / (2 pi)             the paper's ramp
    g_a = 1 - clip((a - low) / (high - low), 0, 1),  low = floor(D(beta)),  high = ceil(D(alpha)),  the released ramp
          D(turns) = r ln(L / (2 pi turns)) / (2 ln base), both ends within 0 .. r - 1
    cos and sin times 0.1 ln(s) + 1

Pairs that turn more than beta times inside L are left alone, those that turn less than alpha times are interpolated.
The released code, and ports of it, are linear in the channel a instead of in the turns: the same ends up to rounding,
different in between. The factor on both queries and keys raises scores by its square. With s = 1 it is RoPE.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lcbench.position.base import LayerShape
from lcbench.position.rope import Pairing, Rope, at_least_one


class Yarn(Rope):
    """Fast pairs keep their frequency, slow ones are interpolated, scores are sharpened.

    Args:
        shape: the network's shape.
        context: L, the window of the original training, not the extended one.
        scale: s, the target length over L.
        ramp: how frequencies between the two kinds are mixed: as in the ``paper`` or as in the ``released`` code.
        alpha: turns inside L up to which a pair is wholly interpolated.
        beta: turns inside L from which a pair is left alone.
        base, pairing, channels: as in ``Rope``.
    """

    def __init__(
        self,
        shape: LayerShape,
        *,
        context: int,
        scale: float = 4.0,
        ramp: Literal["paper", "released"] = "paper",
        alpha: float = 1.0,
        beta: float = 32.0,
        base: float = 10000.0,
        pairing: Pairing = "interleaved",
        channels: int | None = None,
    ) -> None:
        super().__init__(shape, base=base, pairing=pairing, channels=channels)
        self.context = context
        self.scale = at_least_one("position.scale", scale)
        self.alpha, self.beta = alpha, beta
        self.kept = self.paper_ramp() if ramp == "paper" else self.released_ramp()

    def paper_ramp(self) -> Tensor:
        """g, ``[channels / 2]``: the share of its own frequency that a pair keeps."""
        turns = self.context * super().frequencies() / (2 * math.pi)
        return ((turns - self.alpha) / (self.beta - self.alpha)).clamp(0, 1)

    def released_ramp(self) -> Tensor:
        """g of the released code."""

        def channel(turns: float) -> float:
            return self.channels * math.log(self.context / (2 * math.pi * turns)) / (2 * math.log(self.base))

        low = max(math.floor(channel(self.beta)), 0)
        high = min(math.ceil(channel(self.alpha)), self.channels - 1)
        a = torch.arange(self.channels // 2, dtype=torch.float64, device="cpu")
        return 1 - ((a - low) / (high - low if high != low else 0.001)).clamp(0, 1)

    def frequencies(self) -> Tensor:
        theta = super().frequencies()
        return (1 - self.kept) * theta / self.scale + self.kept * theta

    def magnitude(self) -> float:
        return 0.1 * math.log(self.scale) + 1
