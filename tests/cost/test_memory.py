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


def test_added_memory_is_what_was_taken_for_a_while() -> None:
    device = torch.device("cpu")
    added = memory.added_peak_bytes(lambda: torch.ones(8 * 2**20).sum(), device)
    if added is None:
        pytest.skip("this system does not let a process forget its peak")
    assert added == pytest.approx(32 * 2**20, rel=0.1)


def system(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 50 kB\n"}
CPU = torch.device("cpu")


def test_without_control_groups_the_system_says_what_is_left(tmp_path) -> None:
    assert memory.available_memory_bytes(CPU, tmp_path) is None
    system(tmp_path, MEMINFO)
    assert memory.available_memory_bytes(CPU, tmp_path) == 50 * 1024


@pytest.mark.parametrize(("limit", "left"), [("max", 50 * 1024), ("30000", 30000 - 20000 + 5000)])
def test_a_control_group_leaves_less(tmp_path, limit, left) -> None:
    group = "sys/fs/cgroup/job/step"
    stat = {f"{group}/memory.stat": "anon 15000\ninactive_file 5000\n", f"{group}/memory.current": "20000"}
    system(tmp_path, {**MEMINFO, **stat, "proc/self/cgroup": "0::/job/step\n", f"{group}/memory.max": limit})
    assert memory.available_memory_bytes(CPU, tmp_path) == left


def test_a_group_further_out_may_leave_least(tmp_path) -> None:
    files = {"proc/self/cgroup": "0::/job/step\n"}
    for group, limit in (("job", "9000"), ("job/step", "max")):
        files |= {f"sys/fs/cgroup/{group}/memory.{name}": text for name, text in (("max", limit), ("current", "2000"))}
        files[f"sys/fs/cgroup/{group}/memory.stat"] = "inactive_file 0\n"
    system(tmp_path, {**MEMINFO, **files})
    assert memory.available_memory_bytes(CPU, tmp_path) == 7000


def test_the_older_interface_is_read_too(tmp_path) -> None:
    group = "sys/fs/cgroup/memory"  # in a container the path in /proc is not there
    files = {f"{group}/memory.limit_in_bytes": "4000", f"{group}/memory.usage_in_bytes": "3000"}
    files |= {f"{group}/memory.stat": "total_inactive_file 500\n", "proc/self/cgroup": "4:cpu,memory:/docker/abc\n"}
    system(tmp_path, {**MEMINFO, **files})
    assert memory.available_memory_bytes(CPU, tmp_path) == 1500
