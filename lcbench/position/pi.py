"""Position interpolation (PI): rotary positions squeezed into the trained window.

Chen, Wong, Chen, Tian, "Extending Context Window of Large Language Models via Positional Interpolation", 2023,
arXiv 2306.15595.

    theta'_a = theta_a / s

which is RoPE at position p / s. With s = 1 it is RoPE.
"""

from __future__ import annotations

from torch import Tensor

from lcbench.position.base import LayerShape
from lcbench.position.rope import Pairing, Rope, at_least_one


class PositionInterpolation(Rope):
    """Every frequency is divided by the same factor.

    Args:
        shape: the network's shape.
        scale: s, the target length over the trained one.
        base, pairing, channels: as in ``Rope``.
    """

    def __init__(
        self,
        shape: LayerShape,
        *,
        scale: float = 4.0,
        base: float = 10000.0,
        pairing: Pairing = "interleaved",
        channels: int | None = None,
    ) -> None:
        super().__init__(shape, base=base, pairing=pairing, channels=channels)
        self.scale = at_least_one("position.scale", scale)

    def frequencies(self) -> Tensor:
        return super().frequencies() / self.scale
