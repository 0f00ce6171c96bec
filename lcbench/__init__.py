"""lcbench: which mechanism remembers what it has read, and at what cost.

The Python face; everything heavy is imported when first used:

    lcbench.compose(overrides)            a checked config
    lcbench.build_model(overrides)        the network of a command line
    lcbench.build_attention(name, d_model=, n_heads=, position="none", **options)
    lcbench.load(run)                     a trained network and its task
    lcbench.evaluate(run, overrides)      a trained network scored elsewhere, recorded beside its run
    lcbench.generate(run, prompt)         what it writes after a prompt, piece by piece
    lcbench.results.read(paths)           the records of runs
    lcbench.results.compare(paths)        a table of runs, as plain data
"""

from __future__ import annotations

import importlib
from typing import Any

_FACE = {
    "compose": "lcbench.composition",
    "build_model": "lcbench.composition",
    "build_attention": "lcbench.composition",
    "load": "lcbench.trained",
    "evaluate": "lcbench.again",
    "generate": "lcbench.inside.generate",
}

__all__ = ["build_attention", "build_model", "compose", "evaluate", "generate", "load"]


def __getattr__(name: str) -> Any:
    if name == "results":
        return importlib.import_module("lcbench.results")
    if name not in _FACE:
        raise AttributeError(f"module 'lcbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_FACE[name]), name)
