"""Where a run was computed, and with what: versions/*, git/*, machine/* of its record."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from lcbench.cgroups import memory_limits

PACKAGES = ("lcbench", "torch", "lightning", "hydra-core", "omegaconf", "numpy", "wandb")


def facts_of_machine(device: str) -> dict[str, Any]:
    """The machine, the packages and the code's commit, flat."""
    return {**_versions(), **_git(), **_machine(device)}


def _versions() -> dict[str, str]:
    found = {"versions/python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[f"versions/{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any]:
    """The commit of the checkout that lcbench runs from; nothing in an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    try:
        commit = _call("git", "-C", str(root), "rev-parse", "HEAD")
        changed = _call("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git/commit": commit, "git/changed": bool(changed)}


def _call(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()


def _machine(device: str) -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "machine/platform": platform.platform(),
        "machine/processor": processor(),
        "machine/cores": os.cpu_count(),
        "machine/threads": torch.get_num_threads(),
        "machine/memory_bytes": memory_bytes(),
        "machine/device": device,
    }
    if device == "cuda":
        facts["machine/accelerator"] = torch.cuda.get_device_name()
    return facts


def processor() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """The machine's memory, or what a container may have of it."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError):
        return None
    return min(found + [limit.most for limit in memory_limits()])


def device_bytes(device: str) -> int | None:
    """The memory that tensors on ``device`` can have; None if that is not known."""
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory_bytes()
