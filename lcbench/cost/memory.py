"""Memory, measured: the peak of this process, what some work adds to it, and what there is left."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from lcbench.cgroups import memory_limits

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
#: glibc's M_MMAP_THRESHOLD
_MMAP_THRESHOLD = -3


def give_back_memory() -> None:
    """Hand back to the system what this process has freed, where the C library can (glibc).

    Its heap otherwise keeps the gaps that temporaries of changing sizes leave, and grows by them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def large_tensors_apart() -> Iterator[None]:
    """Meanwhile, what takes 1 MiB or more gets memory of its own, which goes back to the system when freed; where
    the C library can (glibc). It costs new pages each time: for work whose memory matters more than its speed.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is None:
        yield
        return
    option(_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        # where glibc's own choice ends up in a process that has freed large tensors
        option(_MMAP_THRESHOLD, 32 * 2**20)


def reset_peak_memory(device: torch.device) -> bool:
    """Forget the peak so far, so that ``peak_memory_bytes`` tells what comes.

    Returns:
        Whether the system allows it; if not, the peak stays that since the process began.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")  # Linux: sets the highest resident size back to the present one
    except OSError:
        return False
    return True


def peak_memory_bytes(device: torch.device) -> int:
    """Most bytes held at once since the last reset.

    On a GPU: bytes that tensors held. On a CPU: the process's resident memory, interpreter and libraries included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def added_peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes by which ``run`` raises the peak of this process; best called in a process of its own, after something
    smaller has made libraries take what they keep.

    Returns:
        None where the system does not let a process forget its peak.
    """
    give_back_memory()  # what was freed before must not hide what is taken now
    if not reset_peak_memory(device):
        return None
    before = peak_memory_bytes(device)
    run()
    return peak_memory_bytes(device) - before


def available_memory_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that can still be taken: on a GPU what its driver says, else the least of what the system and the control
    groups of this process (a container's or a batch job's limits) leave.

    Args:
        device: of the tensors.
        root: where ``proc`` and ``sys`` lie.

    Returns:
        None where the system says nothing.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    left = [*_left_in_system(root), *(limit.left for limit in memory_limits(root))]
    return min(left, default=None)


def _left_in_system(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
