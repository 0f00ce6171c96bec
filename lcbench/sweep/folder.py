"""A sweep's own folder, hidden beside its runs: what its jobs are, whatever launcher or sweeper starts them.

    outputs/.sweeps/<what varies>-<8 hex of the words>/
      sweep.json     the W&B group, and the keys that are the same in all jobs
      jobs/          a file per job: its overrides, and its run's folder once it has started

The name comes from the words, so the same sweep through another launcher, or again, finds the same folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from lcbench.configs import is_computed
from lcbench.results.record import write_text

SWEEPS = ".sweeps"


@dataclass(frozen=True)
class JobFile:
    """What is known of a job.

    Args:
        overrides: its words.
        run: its run's folder; None before it has started.
    """

    overrides: list[str]
    run: Path | None


class SweepFolder:
    """Where a sweep's jobs are listed.

    Args:
        path: ``outputs/.sweeps/<name>``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.jobs = path / "jobs"
        self._facts = path / "sweep.json"

    def begin(self, group: str, fixed: Iterable[str]) -> None:
        """Note what all jobs share: the W&B group, and the keys that do not tell them apart."""
        write_text(self._facts, json.dumps({"group": group, "fixed": sorted(fixed)}, indent=1) + "\n")

    @cached_property
    def _known(self) -> dict[str, Any]:
        return json.loads(self._facts.read_text())

    @property
    def group(self) -> str:
        """What the sweep's runs are grouped by in W&B."""
        return str(self._known["group"])

    def label(self, overrides: Sequence[str]) -> str:
        """The part of a job's words that tells it from others: ``position=rope seed=0``; empty if there is none."""
        return " ".join(word for word in map(plain, overrides) if key_of(word) not in self._known["fixed"])

    def add(self, overrides: Sequence[str], run: Path | None = None) -> None:
        """List a job; a run already known is kept."""
        words = sorted(map(plain, overrides))
        path = self.jobs / f"{digest(words)}.json"
        if run is not None or not path.exists():
            text = {"overrides": list(map(plain, overrides)), "run": None if run is None else str(run.resolve())}
            write_text(path, json.dumps(text, indent=1) + "\n")

    def read(self) -> list[JobFile]:
        """All jobs, in the order of their words."""
        found = [json.loads(path.read_text()) for path in self.jobs.glob("*.json")]
        found.sort(key=lambda job: job["overrides"])
        return [JobFile(job["overrides"], Path(job["run"]) if job["run"] else None) for job in found]


def last_words(words: Iterable[str]) -> dict[str, Override]:
    """By key, the last of the words that are about it, which counts for Hydra."""
    return {override.key_or_group: override for override in OverridesParser.create().parse_overrides(list(words))}


def plain(override: str) -> str:
    """An override as a user types it: Hydra's ``++`` is not needed here."""
    return override.lstrip("+")


def key_of(override: str) -> str:
    """The key of an override."""
    return plain(override).partition("=")[0]


def digest(words: Sequence[str]) -> str:
    """8 hex digits of some words."""
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:8]


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:80]


def name_of(parsed: Iterable[Override]) -> str:
    """A sweep's name: what varies, readable, and the hash of all that decides what its jobs compute."""
    deciding = [override for override in parsed if _decides(override.key_or_group)]
    words = sorted(plain(override.input_line or "") for override in deciding)
    varying = sorted(plain(override.input_line or "") for override in deciding if override.is_sweep_override())
    return f"{slug('_'.join(varying)) or 'sweep'}-{digest(words)}"


def _decides(key: str) -> bool:
    if key.startswith("hydra"):
        return not key.startswith(("hydra/launcher", "hydra.launcher"))
    return key == "experiment" or is_computed(key)
