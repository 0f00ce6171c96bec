"""Where the literal definitions are: ``tests/oracles/NAME.py`` of the checkout that the package runs from.

An oracle shares no code with lcbench, works in float64 and reads one document without padding; documents, padding and
batches are the suite's business. An encoding's module has

    def row(i, q, k, v, x, positions, weights, *, head, n_heads, **options):
        The scores that enter query i's softmax over keys 0 .. i, ``[i + 1]``. ``q``, ``k``, ``v`` ``[time, head_dim]``
        are those of ``head``, before rotation; ``x`` ``[time, d_model]``; ``positions`` ``[time]``; ``weights`` are
        the encoding's own, by name.

and a mechanism's module has

    def forward(x, weights, positions, landmarks, *, row, n_heads, **options):
        Outputs ``[time, d_model]``, or those and the final state's tensors by path, e.g. ``{"state.k": ...}``, without
        a batch axis. ``row(i, q, k, v, head)`` is the encoding's; a mechanism that places keys elsewhere also hands it
        its own ``x`` and ``positions`` of those keys.

A mechanism that reads both ways where it is told to (``reads_together``) has a second definition of that,
``together``, with the arguments of ``forward``. ``row`` gives scores of keys up to the query, so it is handed the
query behind all other tokens.

``options`` are the configuration, complete with defaults. A mechanism's module may also say at which options it is
certified (``CASES``) and at which it equals full attention (``DEGENERATE``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

import lcbench
from lcbench.conformance.subject import Oracle


def find_oracle(name: str) -> ModuleType | None:
    """The oracle module of a mechanism or an encoding; None in an installed wheel, or if there is none."""
    path = Path(lcbench.__file__).parents[1] / "tests" / "oracles" / f"{name}.py"
    if not path.exists():
        return None
    specification = importlib.util.spec_from_file_location(f"tests.oracles.{name}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def oracle_of(
    attention: str,
    position: str,
    *,
    n_heads: int,
    attention_options: Mapping[str, Any],
    position_options: Mapping[str, Any],
    together: bool = False,
) -> Oracle | None:
    """The oracle of a mechanism with an encoding, both by their config names; None where either has none.

    Options must be complete: what the configuration says once defaults are filled in. ``together``: the oracle of
    reading both ways.
    """
    mechanism, encoding = find_oracle(attention), find_oracle(position)
    definition = getattr(mechanism, "together" if together else "forward", None)
    if definition is None or encoding is None:
        return None

    def oracle(
        x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor
    ) -> Tensor | tuple[Tensor, Mapping[str, Tensor]]:
        own = {name.removeprefix("position."): w for name, w in weights.items() if name.startswith("position.")}

        def row(
            i: int, q: Tensor, k: Tensor, v: Tensor, head: int, x: Tensor = x, positions: Tensor = positions
        ) -> Tensor:
            return encoding.row(i, q, k, v, x, positions, own, head=head, n_heads=n_heads, **position_options)

        return definition(x, weights, positions, landmarks, row=row, n_heads=n_heads, **attention_options)

    return oracle
