"""What Linux's control groups, a container's or a batch job's, let this process have. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MemoryLimit:
    """A limit of memory, in bytes.

    Args:
        most: what the group may have.
        used: what it has, without files in the page cache that nobody uses: they are given back when memory is short.
    """

    most: int
    used: int

    @property
    def left(self) -> int:
        """What it may still take."""
        return max(0, self.most - self.used)


def memory_limits(root: Path = Path("/")) -> Iterator[MemoryLimit]:
    """Of the process's control group and of every group around it, in either version of the interface.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounted, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mounted, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = mounted / path.lstrip("/")
        # in a container the path is often that outside of it: then only the mounted root is there
        for folder in (group, *group.parents):
            found = _limit(folder, limit, usage)
            if found is not None:
                yield found
            if folder == mounted:
                break


def _limit(folder: Path, limit: str, usage: str) -> MemoryLimit | None:
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if most == "max":
        return None
    idle = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return MemoryLimit(int(most), used - idle)
