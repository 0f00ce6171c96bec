"""Recurrent memory, segment by segment: one sequence [S ; X ; W] a segment, and who sees whom written out."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracles import decoder


def logits(
    tokens: Tensor,
    weights: dict[str, Tensor],
    *,
    segment: int,
    slots: int,
    write: str,
    accumulate: bool,
    n_layers: int,
    n_heads: int,
) -> Tensor:
    """Logits ``[time, vocabulary]`` of one sequence ``tokens`` ``[time]``; full attention without positions."""
    own = {name.removeprefix("decoder."): w.double() for name, w in weights.items() if name.startswith("decoder.")}
    size = own["embedding.weight"].shape[1] ** -0.5
    carried = list(weights["start"].double()) if write == "carried" else []
    outputs = []
    for start in range(0, len(tokens), segment):
        x = [own["embedding.weight"][int(token)] for token in tokens[start : start + segment]]
        written = carried if write == "carried" else list(weights["summary"].double())
        n, m = len(carried), len(carried) + len(x)
        sees = [list(range(n)) for _ in range(n)]
        sees += [list(range(i + 1)) for i in range(n, m)]
        sees += [list(range(m + slots)) for _ in range(slots)]
        read = decoder.hidden(
            [*carried, *x, *written],
            own,
            sees,
            n_layers=n_layers,
            n_heads=n_heads,
            norm="layer",
            norm_position="pre",
            activation="gelu",
        )
        outputs += [own["output.weight"] @ y for y in read[n:m]]
        new = [y * size for y in read[m:]]
        carried = [*carried, *new] if accumulate else new
    return torch.stack(outputs)
