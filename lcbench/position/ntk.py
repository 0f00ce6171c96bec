"""NTK-aware interpolation, static: the base of the rotary frequencies is raised.

A public post of June 2023 ("NTK-aware scaled RoPE", bloc97); described in YaRN, Peng et al. 2023, arXiv 2309.00071.
With r turned channels:

    base' = base * s^(r / (r - 2))

leaves the highest frequency as it is, divides the lowest by exactly s, and all others by something in between. Those
divided by less than s meet, at s times the trained window, angles that training never showed: s is to be set above the
wanted ratio.
"""

from __future__ import annotations

from lcbench.position.base import LayerShape
from lcbench.position.rope import Pairing, Rope, at_least_one


class Ntk(Rope):
    """A larger base: slow pairs are slowed, fast ones are not.

    Args:
        shape: the network's shape.
        scale: s, the target length over the trained one, or more.
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
        self.base = base * at_least_one("position.scale", scale) ** self.ntk_exponent()
