"""Blockwise causal attention, query by query: the mechanism within reads the query's own and the previous block up to
the query, from a fresh start and at positions counted from there, and its last output is the query's.

The mechanism within is its own oracle, found by the configuration's target.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

CASES = [
    {"length": 12, "inner": "full"},
    {"length": 10, "inner": "dilated", "inner.segments": [6], "inner.dilations": [2]},
]


def forward(
    x: Tensor,
    weights: dict[str, Tensor],
    positions: Tensor,
    landmarks: Tensor,
    *,
    row: Callable[..., Tensor],
    n_heads: int,
    length: int,
    inner: dict[str, Any],
) -> Tensor:
    definition = _oracle(inner["_target_"])
    options = {key: value for key, value in inner.items() if key != "_target_"}
    own = {name.removeprefix("inner."): weight for name, weight in weights.items()}
    half = length // 2
    outputs = []
    for i in range(len(x)):
        block = int(positions[i]) // half
        seen = [j for j in range(i + 1) if block - 1 <= int(positions[j]) // half <= block]
        start = max(0, (block - 1) * half)
        some, places = x[seen], positions[seen] - start

        def placed(i: int, q: Tensor, k: Tensor, v: Tensor, head: int, x=some, positions=places) -> Tensor:  # type: ignore[no-untyped-def]
            return row(i, q, k, v, head, x, positions)

        answer = definition.forward(some, own, places, landmarks[seen], row=placed, n_heads=n_heads, **options)
        outputs.append((answer[0] if isinstance(answer, tuple) else answer)[-1])
    return torch.stack(outputs)


def _oracle(target: str) -> ModuleType:
    name = target.split(".")[-2]
    specification = importlib.util.spec_from_file_location(f"oracle_{name}", Path(__file__).with_name(f"{name}.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
