"""Drawing the next token.

Temperature T divides scores: ``p = softmax(s / T)``, at T = 0 the likeliest token. Nucleus sampling (Holtzman, Buys,
Du, Forbes and Choi, "The Curious Case of Neural Text Degeneration", ICLR 2020, arXiv 1904.09751) then keeps the
smallest set of the likeliest tokens whose probability reaches ``top_p``, and draws from these alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lcbench.errors import ConfigurationError


def nucleus(scores: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities of the next token, ``[vocabulary]``, float64, from ``scores`` ``[vocabulary]``.

    Of tokens that are as likely, those with smaller ids are kept first.
    """
    wide = scores.double().cpu()
    if temperature == 0:
        only = torch.zeros_like(wide)
        only[wide.argmax()] = 1.0
        return only
    # relative to the highest, so that no temperature overflows
    p = ((wide - wide.max()) / temperature).softmax(-1)
    if top_p == 1:
        return p
    ordered, order = p.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(p).scatter(0, order, torch.where(before < top_p, ordered, 0.0))
    return kept / kept.sum()


class Sampler:
    """Draws tokens; the same seed draws the same ones.

    Args:
        temperature: from 0 on.
        top_p: above 0, at most 1.
        seed: of what is random.

    Raises:
        ConfigurationError: for a value outside its range.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        if not 0 <= temperature < float("inf"):
            raise ConfigurationError(
                f"--temperature {temperature:g}: must be a number from 0 on; the closest is 0 (greedy)."
            )
        if not 0 < top_p <= 1:
            raise ConfigurationError(f"--top-p {top_p:g}: must be above 0 and at most 1; 1 keeps every token.")
        if not 0 <= seed < 2**63:
            raise ConfigurationError(
                f"--seed {seed}: must be from 0 to 2^63 - 1; the closest is {max(0, -seed) % 2**63}."
            )
        self.temperature, self.top_p = temperature, top_p
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, scores: Tensor) -> int:
        """A token, given ``scores`` ``[vocabulary]``: one random number each, whatever the device."""
        reached = nucleus(scores, self.temperature, self.top_p).cumsum(-1)
        u = torch.rand((), dtype=torch.float64, generator=self._generator) * reached[-1]
        # the first token whose running sum is above u: one of probability 0 never is
        return int(torch.searchsorted(reached, u, right=True).clamp(max=len(reached) - 1))
