"""How states fill their space: whether they have collapsed, or point into a narrow cone.

Ethayarajh 2019, arXiv 1909.00512 (mean cosine); Gao et al. 2019, arXiv 1907.12009 (narrow cones); Wang and Isola 2020,
arXiv 2005.10242 (uniformity). With states x_1 .. x_n, u_i = x_i / |x_i|, and l the eigenvalues of their covariance,

- mean_cosine: mean of u_i . u_j over pairs i != j: 0 in all directions alike, 1 collapsed. An offset that all states
  share raises it, and is harmless to a softmax over inner products; the next two leave the mean out.
- top_share: max l / sum l, the largest direction's share of the variance.
- participation_ratio: (sum l)^2 / sum l^2, from 1 (one direction) to d_model (all alike).
- uniformity: log of the mean of exp(-2 |u_i - u_j|^2) over pairs i != j; 0 collapsed, lower is more uniform.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lcbench.attention.precision import wide, without_autocast

#: states looked at, spread evenly over the batch
STATES = 512


@torch.no_grad()
def geometry(states: Tensor, padding: Tensor | None, name: str) -> dict[str, Tensor]:
    """The four numbers of ``states`` ``[batch, time, d_model]``, as ``name/mean_cosine`` and so on.

    ``padding`` is bool ``[batch, time]`` or None; what it hides is left out. Empty for fewer than two states.
    """
    flat = states.flatten(0, 1) if padding is None else states[~padding]
    if len(flat) < 2:
        return {}
    flat = wide(flat[:: -(-len(flat) // STATES)])  # [n, d_model]
    with without_autocast(flat.device):
        unit = normalize(flat, dim=-1)
        cosines = unit @ unit.T
        pairs = cosines[~torch.eye(len(flat), dtype=torch.bool, device=flat.device)]
        centred = flat - flat.mean(0)
        # of the covariance, up to the number of states, which the shares do not depend on
        eigenvalues = torch.linalg.svdvals(centred).square()
        total = eigenvalues.sum().clamp_min(torch.finfo(flat.dtype).tiny)
        shares = eigenvalues / total
        measures = {
            "mean_cosine": pairs.mean(),
            "top_share": shares.max(),
            "participation_ratio": 1 / shares.square().sum().clamp_min(torch.finfo(flat.dtype).tiny),
            # |u - v|^2 = 2 - 2 u.v
            "uniformity": (4 * pairs - 4).exp().mean().log(),
        }
    return {f"{name}/{measure}": value for measure, value in measures.items()}
