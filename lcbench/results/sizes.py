"""Sizes as people read them."""

from __future__ import annotations


def human_bytes(value: float) -> str:
    """Bytes in powers of 1024."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:,.0f} B" if units[0] == "B" else f"{value:,.1f} {units[0]}"


def human_seconds(value: float) -> str:
    """A time in the unit that suits it, to three digits."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * size:
            return f"{_three(value / size)} {unit}"
    return f"{_three(value)} s" if value >= 1 else f"{_three(value * 1e3)} ms"


def human_count(value: float) -> str:
    """A number to three digits with the prefix of the SI."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 999.5:
            return f"{_three(value)} {prefix}".rstrip() if prefix else _three(value)
        value /= 1000
    return f"{value * 1000**7:.2e}"


def _three(value: float) -> str:
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
