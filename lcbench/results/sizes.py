"""Sizes as people read them."""

from __future__ import annotations


def human_bytes(value: float) -> str:
    """Bytes in powers of 1024."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:,.0f} B" if units[0] == "B" else f"{value:,.1f} {units[0]}"
