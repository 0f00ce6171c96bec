"""What the conformance suite says of a layer, for a reader and for a program."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Check:
    """One law and whether it holds.

    Args:
        name: the law, in a few words.
        law: the law, as a sentence.
        passed: None where it does not apply; ``detail`` says why.
        detail: what was looked at, or what went wrong.
        measured: the largest violation found, or None where the law is not a number.
        tolerance: the violation that rounding explains, or None.
    """

    name: str
    law: str
    passed: bool | None
    detail: str
    measured: float | None = None
    tolerance: float | None = None


def versions() -> dict[str, str]:
    """Versions of what the result may depend on."""
    try:
        ours = importlib.metadata.version("lcbench")
    except importlib.metadata.PackageNotFoundError:
        ours = "not installed"
    return {"lcbench": ours, "torch": torch.__version__, "python": platform.python_version()}


@dataclass(frozen=True)
class Certificate:
    """All checks on one layer, with what is needed to repeat them.

    Args:
        composition: what was certified, e.g. ``attention=full position=cope``.
        checks: in the order in which they ran.
        device: where.
        dtype: of weights and activations, wherever a check does not choose its own.
        length: tokens in the longest input.
        seed: of weights and inputs.
        seconds: wall time.
        versions: of lcbench, torch and Python.
        machine: processor or accelerator.
    """

    composition: str
    checks: tuple[Check, ...]
    device: str
    dtype: str
    length: int
    seed: int
    seconds: float
    versions: dict[str, str] = field(default_factory=versions)
    machine: str = field(default_factory=platform.machine)

    @property
    def passed(self) -> bool:
        """Whether every law that applies holds."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the laws that do not hold."""
        return tuple(check.name for check in self.checks if check.passed is False)

    @property
    def verdict(self) -> str:
        """One line."""
        held = sum(check.passed is True for check in self.checks)
        skipped = sum(check.passed is None for check in self.checks)
        words = f"{held} held, {len(self.failed)} failed, {skipped} not applicable"
        return f"{'certified' if self.passed else 'NOT certified'}: {words}"

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; a violation that is not finite is a string."""
        plain = dataclasses.asdict(self)
        for check in plain["checks"]:
            if check["measured"] is not None and not math.isfinite(check["measured"]):
                check["measured"] = str(check["measured"])
        return plain | {"checks": list(plain["checks"]), "passed": self.passed, "failed": list(self.failed)}

    def render(self) -> Group:
        """For the terminal: what was certified, a row for each check, what failed in full, the verdict."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        marks = {True: ("held", "green"), False: ("FAILED", "bold red"), None: ("n/a", "dim")}
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("law", no_wrap=True)
        table.add_column("result", no_wrap=True)
        table.add_column("measured", no_wrap=True, justify="right")
        table.add_column("tolerance", no_wrap=True, justify="right")
        table.add_column("looked at")
        for check in self.checks:
            word, style = marks[check.passed]
            numbers = ["" if n is None else f"{n:.2g}" for n in (check.measured, check.tolerance)]
            detail = Text(check.detail, "dim", no_wrap=True, overflow="ellipsis")
            table.add_row(check.name, Text(word, style), *numbers, detail)
        where = f"{self.device} ({self.machine}), {self.dtype}, {self.length} tokens, seed {self.seed}"
        software = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        broken = [Text(f"{c.name}: {c.law} {c.detail}", "red") for c in self.checks if c.passed is False]
        return Group(
            Text(self.composition, "bold"),
            Text(where),
            Text(software),
            Text(),
            table,
            Text(),
            *broken,
            Text(f"{self.verdict} ({self.seconds:.1f} s)", "bold green" if self.passed else "bold red"),
        )
