"""Peak memory of this process, measured."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def give_back_memory() -> None:
    """Hand back to the system what this process has freed, where the C library can (glibc).

    Its heap otherwise keeps the gaps that temporaries of changing sizes leave, and grows by them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


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
