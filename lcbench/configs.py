"""Where config files lie and what they offer. Imports nothing heavy: completion and ``lcbench list`` live on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

#: what decides where and how a run is watched, not what it computes: no part of its identity
NOT_COMPUTED = ("outputs", "rerun", "retry", "logger", "trainer.progress", "experiment", "tags")


#: folders of conf/ that no user chooses from: Hydra's own, and what an experiment sets for one of its encodings
_NO_GROUPS = ("hydra", "tuned")


def is_computed(key: str) -> bool:
    """Whether a dotted key decides what a run computes."""
    return not any(key == name or key.startswith(f"{name}.") for name in NOT_COMPUTED)


def config_directory() -> Path:
    """The packaged conf/ of an installed wheel, else that of the checkout."""
    package = Path(__file__).resolve().parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


def groups_of(directories: Sequence[Path]) -> list[str]:
    """Names of the config groups: the top-level folders."""
    return sorted({p.name for d in directories for p in d.iterdir() if p.is_dir() and p.name not in _NO_GROUPS})


def choices_of(group: str, directories: Sequence[Path]) -> dict[str, Path]:
    """The choices of a group and their files, sorted; a later folder's file hides an earlier one's."""
    found = {}
    for directory in directories:
        for path in (directory / group).rglob("*.yaml"):
            found[path.relative_to(directory / group).with_suffix("").as_posix()] = path
    return dict(sorted(found.items()))


def describe(path: Path) -> str:
    """The first comment line of a config file: what it is, and the paper."""
    lines = (line for line in path.read_text().splitlines() if not line.startswith("# @package"))
    first = next(lines, "")
    return first.removeprefix("#").strip() if first.startswith("#") else ""
