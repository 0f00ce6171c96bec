"""Peak memory, measured around a known allocation."""

from __future__ import annotations

import pytest
import torch

from lcbench.cost import memory
from lcbench.cost.memory import peak_memory_bytes, reset_peak_memory

CPU = torch.device("cpu")
SIZE = 128 * 2**20
SLACK = 16 * 2**20


def touch() -> None:
    """Hold ``SIZE`` bytes for a moment."""
    torch.ones(SIZE, dtype=torch.uint8)


def test_the_peak_holds_what_was_allocated_and_is_forgotten_after_a_reset() -> None:
    if not reset_peak_memory(CPU):
        pytest.skip("this system does not let a process reset its peak")
    before = peak_memory_bytes(CPU)
    touch()
    assert peak_memory_bytes(CPU) - before == pytest.approx(SIZE, abs=SLACK)
    assert reset_peak_memory(CPU)
    assert peak_memory_bytes(CPU) < before + SLACK


def test_without_proc_the_peak_is_that_of_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = peak_memory_bytes(CPU)
    missing = memory._STATUS.with_name("missing")
    monkeypatch.setattr(memory, "_STATUS", missing)
    monkeypatch.setattr(memory, "_CLEAR", missing / "missing")
    assert not reset_peak_memory(CPU)
    touch()
    assert peak_memory_bytes(CPU) >= max(SIZE, peak - SLACK)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_peak_is_that_of_tensors() -> None:
    device = torch.device("cuda")
    reset_peak_memory(device)
    before = peak_memory_bytes(device)
    torch.ones(SIZE, dtype=torch.uint8, device=device)
    assert peak_memory_bytes(device) - before == SIZE
