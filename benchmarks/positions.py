"""Time and memory of every position encoding, forward and backward, beside the published forms.

One layer's attention core (no projections): batch 1, 4 heads of 64, float32. The baselines are written below as they
are published, with all tensors of size time x time: CoPE as in its definition, softmax attention as in its equation.

    python benchmarks/positions.py                      # everything, a few minutes on two cores
    python benchmarks/positions.py --lengths 1024 --only cope relative

Times are medians. A share of a baseline's time is the median ratio of runs that alternate with the baseline's, so that
the machine's moods hit both. A point's peak memory is the growth of the resident set in a process of its own.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues
from lcbench.attention.scoring import attend
from lcbench.position.absolute_learned import AbsoluteLearned
from lcbench.position.absolute_sinusoidal import AbsoluteSinusoidal
from lcbench.position.alibi import Alibi
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.position.cope import Cope
from lcbench.position.cope_relative import CopeRelative
from lcbench.position.cope_rope import CopeRope
from lcbench.position.dynamic_ntk import DynamicNtk
from lcbench.position.none import NoPosition
from lcbench.position.ntk import Ntk
from lcbench.position.pi import PositionInterpolation
from lcbench.position.relative import Relative
from lcbench.position.relative_capped import RelativeCapped
from lcbench.position.rope import Rope
from lcbench.position.t5 import T5
from lcbench.position.transformer_xl import TransformerXL
from lcbench.position.yarn import Yarn

#: name -> encoding for sequences of some length; dynamic_ntk's window is half of it, so that half the queries pay,
#: and so much that it is not measured where it would take minutes
ENCODINGS: dict[str, Callable[[LayerShape, int], PositionEncoding]] = {
    "none": lambda shape, length: NoPosition(shape),
    "absolute_learned": lambda shape, length: AbsoluteLearned(shape, max_length=length),
    "absolute_sinusoidal": lambda shape, length: AbsoluteSinusoidal(shape),
    "rope": lambda shape, length: Rope(shape),
    "pi": lambda shape, length: PositionInterpolation(shape),
    "ntk": lambda shape, length: Ntk(shape),
    "yarn": lambda shape, length: Yarn(shape, context=length),
    "dynamic_ntk": lambda shape, length: DynamicNtk(shape, context=length // 2),
    "alibi": lambda shape, length: Alibi(shape),
    "t5": lambda shape, length: T5(shape),
    "relative": lambda shape, length: Relative(shape, context=length),
    "relative_capped": lambda shape, length: RelativeCapped(shape, context=length),
    "transformer_xl": lambda shape, length: TransformerXL(shape),
    "cope": lambda shape, length: Cope(shape, context=length),
    "cope, P 64": lambda shape, length: Cope(shape, p_max=64),
    "cope_rope": lambda shape, length: CopeRope(shape, context=length),
    "cope_relative": lambda shape, length: CopeRelative(shape, context=length),
}
BASELINES = ("explicit softmax", "published cope", "published cope, P 64")


def explicit_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(c q k^T + mask) v``, ``[batch, heads, time, head_dim]``."""
    time_ = q.shape[2]
    scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    future = torch.ones(time_, time_, dtype=torch.bool).triu(1)
    return torch.matmul(torch.softmax(scores.masked_fill(future, -math.inf), -1), v)


def published_cope(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """CoPE as defined: gates, positions, two gathers and their interpolation for all pairs at once."""
    time_, c = q.shape[2], 1 / math.sqrt(q.shape[-1])
    scores = torch.matmul(q, k.transpose(-1, -2))
    future = torch.ones(time_, time_, dtype=torch.bool).triu(1)
    gates = torch.sigmoid(c * scores).masked_fill(future, 0.0)
    positions = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=len(table) - 1)
    ceiling, floor = positions.ceil().long(), positions.floor().long()
    integer = torch.matmul(q, table.T)
    w = positions - floor
    bias = integer.gather(-1, ceiling) * w + integer.gather(-1, floor) * (1 - w)
    return torch.matmul(torch.softmax((c * (scores + bias)).masked_fill(future, -math.inf), -1), v)


def step(name: str, length: int, batch: int, heads: int, head_dim: int) -> Callable[[], None]:
    """One forward and backward pass of ``name``."""
    torch.manual_seed(0)
    q, k, v, gradient = (torch.randn(batch, heads, length, head_dim) for _ in range(4))
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    if name in BASELINES:
        table = torch.zeros(64 if "64" in name else length + 1, head_dim, requires_grad=True)
        torch.nn.init.normal_(table)

        def forward() -> Tensor:
            return published_cope(q, k, v, table) if "cope" in name else explicit_softmax(q, k, v)
    else:
        encoding = ENCODINGS[name](LayerShape(heads * head_dim, heads), length)
        for parameter in encoding.parameters():
            torch.nn.init.normal_(parameter)
        context = Context(torch.arange(length).expand(batch, length))
        x = torch.zeros(batch, length, heads * head_dim)

        def forward() -> Tensor:
            keys = KeyValues.of(k, v, encoding.key_features(x, k, v), context)
            return attend(q, context, keys, encoding)

    def run() -> None:
        for tensor in inputs:
            tensor.grad = None
        forward().backward(gradient)

    return run


def seconds(run: Callable[[], None], repeats: int) -> float:
    """Median time of ``run``, one warm-up before."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def share(run: Callable[[], None], rival: Callable[[], None], repeats: int) -> float:
    """Median ratio of the times of ``run`` and ``rival``, in turns, one warm-up of each before."""
    run()
    rival()
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        middle = time.perf_counter()
        rival()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return statistics.median(ratios)


def extra_peak(name: str, length: int) -> int:
    """Bytes by which one step raises the peak of this process; to be called in a fresh one."""
    step(name, 32, 1, 4, 64)()  # libraries make their own buffers on first use
    run = step(name, length, 1, 4, 64)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = peak()
    run()
    return peak() - before


def peak() -> int:
    """Largest resident set of this process, in bytes; getrusage would tell that of the parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def extra_peak_apart(name: str, length: int, threads: int) -> int:
    """``extra_peak`` in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads), "--memory", name, str(length)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(length: int, names: list[str], threads: int) -> None:
    """A row for every name: time, peak memory, and both as shares of the baselines'."""
    print(f"\nlength {length}, batch 1, 4 heads of 64, float32, {threads} threads, forward + backward")
    print(f"{'':22}{'ms':>9}{'MiB':>8}{'of explicit softmax':>24}{'of published CoPE':>24}")
    measured = {}
    for name in names:
        if name == "dynamic_ntk" and length > 2048:
            continue
        repeats = max(3, min(15, round(4e7 / length**2)))
        run = step(name, length, 1, 4, 64)
        measured[name] = seconds(run, repeats), extra_peak_apart(name, length, threads)
        rivals = ["explicit softmax"]
        if name.startswith("cope"):
            rivals.append("published cope, P 64" if "P 64" in name else "published cope")
        row = f"{name:22}{measured[name][0] * 1e3:9.1f}{measured[name][1] / 2**20:8.0f}"
        for rival in rivals:
            time_ = share(run, step(rival, length, 1, 4, 64), repeats)
            memory = measured[name][1] / measured[rival][1]
            row += f"{time_:10.0%} time{memory:5.0%} mem"
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of every position encoding.")
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 4096])
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of: {', '.join(ENCODINGS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "LENGTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print(extra_peak(arguments.memory[0], int(arguments.memory[1])))
        return

    chosen = arguments.only or list(ENCODINGS)
    baselines = [name for name in BASELINES if "P 64" not in name or "cope, P 64" in chosen]
    names = [*baselines, *(name for name in ENCODINGS if name in chosen)]
    for length in arguments.lengths:
        table(length, names, arguments.threads)
    print("\nlength 64, batch 64, 4 heads of 16 (the demonstration's layer), forward + backward, ms")
    for name in names:
        if "P 64" not in name:
            print(f"{name:22}{seconds(step(name, 64, 64, 4, 16), 25) * 1e3:9.1f}", flush=True)


if __name__ == "__main__":
    main()
