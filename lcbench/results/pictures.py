"""Figures by Vega-Altair: the package where it is installed, and files that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lcbench.errors import ConfigurationError


def altair(what: str, extra: str = "figures") -> Any:
    """Altair, if it and what writes its pictures are installed.

    Args:
        what: cannot be made without it.
        extra: of lcbench, that installs them.

    Raises:
        ConfigurationError: if they are not.
    """
    try:
        import altair
        import vl_convert  # noqa: F401 altair writes pictures with it
    except ImportError:
        raise ConfigurationError(f"no {what} without altair and vl-convert; pip install 'lcbench[{extra}]'.") from None
    return altair


def save(chart: Any, paths: Iterable[Path], ppi: int = 72) -> None:
    """Write an Altair chart in the format of each path's suffix; ``ppi``: of pictures made of points."""
    for path in paths:
        partial = path.with_name(f".{path.name}")
        kind = path.suffix.removeprefix(".")
        chart.save(str(partial), format=kind, **({"ppi": ppi} if kind == "png" else {}))
        partial.replace(path)
