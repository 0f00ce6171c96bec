"""Time and memory of every mechanism, forward and backward, beside the packages that people install for the same.

    pip install 'lcbench[peers]'
    pip install --no-deps memorizing-transformers-pytorch && pip install einops-exts joblib filelock faiss-cpu
    python benchmarks/mechanisms.py             # everything
    python benchmarks/mechanisms.py --lengths 1024 4096 --only infini memorizing --rounds 9

A package that is not installed costs its row the comparison, no more. (memorizing-transformers-pytorch asks for
faiss-gpu, which has no builds for today's Python; it works with faiss-cpu.) The authors' codes of Transformer-XL,
landmark, dilated and shifted attention are in no package that runs on a CPU: those rows have no peer.

Two scopes, compared only with themselves:

- layer: an attention layer with its four projections, input ``[1, N, 256]``, 4 heads of 64. A peer's own norm before
  its projections is taken out. No side has biases in its maps into queries, keys and values, as the packages do.
- model: a whole decoder of 2 layers with a vocabulary of 256.

float32, batch 1; windows, segments, caches and memories of 256 tokens, kNN memories of N; one graph over all segments:
nothing is detached on either side but where the method says so. "of full" is the ratio to lcbench's full attention
with rotary positions through the fused kernel, a layer or a decoder of the same size.

Every round runs every row once, a mechanism and its peer one after the other. Times are medians over rounds, ratios
are medians of the ratios within a round, with the least and the greatest beside that to the peer. On a machine with
other work take ``--clock cpu``, the processor time of the process. Extra memory is what one step adds to the peak of
the resident set, in a process of its own.

What differs on the peers' side stands in peers.py.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peers import (
    BLOCK,
    COMPRESSED,
    D_FF,
    GLOBALS,
    HEADS,
    LAYERS,
    RATE,
    RETRIEVED,
    SEGMENT,
    SLOTS,
    VOCABULARY,
    WIDTH,
    Step,
    activations,
    bigbird,
    compressive_transformer,
    infini_transformer,
    linear_attention_transformer,
    local_attention,
    longformer,
    longt5,
    memorizing_transformers,
    recurrent_memory_transformer,
    step_of,
    token_ids,
)
from torch import Tensor

import lcbench
from lcbench.attention.base import Context
from lcbench.attention.full import Full
from lcbench.configs import choices_of, config_directory
from lcbench.cost.memory import peak_memory_bytes, reset_peak_memory
from lcbench.model.decoder import Decoder
from lcbench.model.recurrent_memory import RecurrentMemory
from lcbench.position.rope import Rope


def layer(name: str, position: str, length: int, together: bool = False, **options: Any) -> Step:
    """lcbench's layer by its config name; ``together``: reading both ways."""
    module = lcbench.build_attention(name, d_model=WIDTH, n_heads=HEADS, position=position, **options)
    for into in (module.q, module.k, module.v):
        into.register_parameter("bias", None)
    positions = torch.arange(length)[None]
    landmarks = (positions % (BLOCK + 1) == BLOCK) if name == "landmark" else None
    context = Context(positions, landmarks=landmarks, together=together)

    def forward(x: Tensor) -> Sequence[Tensor]:
        output = module(x, context)
        return [output.y, *output.losses.values()]

    return step_of(module, forward, activations(length))


def decoder(length: int) -> Step:
    module = Decoder(VOCABULARY, Full, Rope, **_network())
    return step_of(module, lambda tokens: [module(tokens).logits], token_ids(length))


def recurrent_memory(length: int) -> Step:
    module = RecurrentMemory(VOCABULARY, Full, Rope, segment=SEGMENT, slots=SLOTS, **_network())
    return step_of(module, lambda tokens: [module(tokens).logits], token_ids(length))


def _network() -> dict[str, Any]:
    sizes = {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "d_ff": D_FF}
    return sizes | {"norm": "rms", "activation": "swiglu", "bias": False}


@dataclass(frozen=True)
class Row:
    """
    Args:
        scope: layer or model.
        ours: makes lcbench's step for a length.
        attention: the config name that must be there.
        package: the peer, by its distribution's name; empty for none.
        peer: makes its step.
    """

    scope: str
    ours: Callable[[int], Step]
    attention: str = "full"
    package: str = ""
    peer: Callable[[int], Step] | None = None


def layer_row(
    name: str,
    position: str,
    package: str = "",
    peer: Callable[[int], Step] | None = None,
    options: Callable[[int], dict[str, Any]] = lambda length: {},
) -> Row:
    return Row("layer", lambda length: layer(name, position, length, **options(length)), name, package, peer)


_SEGMENTS = {"segment": SEGMENT, "memory": SEGMENT}
_LONGFORMER = {"window": SEGMENT, "global_tokens": GLOBALS}
_PATTERNS = {"segments": [SEGMENT, 4 * SEGMENT, 16 * SEGMENT], "dilations": [1, 4, 16]}

ROWS = {
    "full": layer_row("full", "rope"),
    "sliding_window": layer_row(
        "sliding_window", "rope", "local-attention", local_attention, lambda length: {"window": SEGMENT}
    ),
    "linear": layer_row("linear", "none", "linear-attention-transformer", linear_attention_transformer),
    "infini": layer_row(
        "infini", "rope", "infini-transformer-pytorch", infini_transformer, lambda length: {"segment": SEGMENT}
    ),
    "transformer_xl": layer_row("transformer_xl", "transformer_xl", options=lambda length: _SEGMENTS),
    "compressive": layer_row(
        "compressive",
        "transformer_xl",
        "compressive-transformer-pytorch",
        compressive_transformer,
        lambda length: _SEGMENTS | {"compressed_memory": COMPRESSED, "rate": RATE},
    ),
    "memorizing": layer_row(
        "memorizing",
        "t5",
        "memorizing-transformers-pytorch",
        memorizing_transformers,
        # both memories hold all that was read
        lambda length: {"segment": SEGMENT, "cache": SEGMENT, "memory": length, "retrieved": RETRIEVED},
    ),
    "longformer": layer_row("longformer", "rope", options=lambda length: _LONGFORMER | {"dilation": [1, 1, 2, 2]}),
    "longformer_both_ways": layer_row(
        "longformer", "none", "transformers", longformer, lambda length: _LONGFORMER | {"together": True}
    ),
    # the paper's sizes for text; a stride for images of that many pixels
    "sparse_fixed": layer_row("sparse_transformer", "rope"),
    "sparse_strided": layer_row(
        "sparse_transformer",
        "rope",
        options=lambda length: {"pattern": "strided", "stride": math.isqrt(length)},
    ),
    "dilated": layer_row("dilated", "rope", options=lambda length: _PATTERNS),
    # groups of a quarter of the length, as in the paper
    "shifted": layer_row("shifted", "rope", options=lambda length: {"group": length // 4}),
    "landmark": layer_row("landmark", "rope", options=lambda length: {"block": BLOCK}),
    "bigbird": layer_row("bigbird", "none", "transformers", bigbird),
    "longt5_local": layer_row("longt5_local", "t5", "transformers", longt5(local=True)),
    "longt5_global": layer_row("longt5_global", "t5", "transformers", longt5(local=False)),
    "decoder": Row("model", decoder),
    "recurrent_memory": Row(
        "model",
        recurrent_memory,
        package="recurrent-memory-transformer-pytorch",
        peer=recurrent_memory_transformer,
    ),
}
#: what a scope's rows are divided by
FULL = {"layer": "full", "model": "decoder"}


def why_no_peer(row: Row) -> str:
    """Empty if the row's peer can be run."""
    if row.peer is None:
        return "no package"
    try:
        importlib.metadata.version(row.package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    return ""


def maker(name: str, side: str) -> Callable[[int], Step]:
    make = ROWS[name].ours if side == "ours" else ROWS[name].peer
    assert make is not None
    return make


def extra_peak(name: str, side: str, length: int) -> int:
    """Bytes by which one step raises the peak of this process; to be called in a fresh one."""
    make = maker(name, side)
    make(4 * SEGMENT)()  # libraries make their own buffers on first use; the BigBird peer needs so many blocks
    step = make(length)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what the first step gave back must not hide what the second takes
    device = torch.device("cpu")
    if not reset_peak_memory(device):
        raise SystemExit("This system does not let a process reset its peak memory; take --no-memory.")
    before = peak_memory_bytes(device)
    step()
    return peak_memory_bytes(device) - before


def extra_peak_apart(name: str, side: str, length: int, threads: int) -> int:
    """``extra_peak`` in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads), "--point", name, side, str(length)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measured(
    names: list[str], length: int, rounds: int, clock: Callable[[], float]
) -> dict[tuple[str, str], list[float]]:
    """Seconds of every round, by row and side, after one step of each that is not counted."""
    points = [
        (name, side) for name in names for side in ("ours", "peer") if side == "ours" or not why_no_peer(ROWS[name])
    ]
    steps = {point: maker(*point)(length) for point in points}
    seconds: dict[tuple[str, str], list[float]] = {point: [] for point in points}
    for number in range(rounds + 1):
        for point, step in steps.items():
            start = clock()
            step()
            if number:
                seconds[point].append(clock() - start)
    return seconds


def ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def table(names: list[str], length: int, arguments: argparse.Namespace) -> None:
    """A row for every name: time and peak memory of both sides, and ratios."""
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    seconds = measured(names, length, arguments.rounds, clock)
    memory = {}
    if not arguments.no_memory:
        memory = {point: extra_peak_apart(*point, length, arguments.threads) for point in seconds}
    print(
        f"\nN {length}, batch 1, float32, {arguments.threads} threads, forward + backward, {arguments.clock} time, "
        f"median of {arguments.rounds} rounds"
    )
    print(
        f"{'':22}{'scope':>6}{'ms':>9}{'MiB':>7}{'of full':>9}  {'peer':44}{'ms':>9}{'MiB':>7}{'of full':>9}"
        f"{'ours/peer: time':>24}{'memory':>8}"
    )
    for name in names:
        row = ROWS[name]
        full = seconds[FULL[row.scope], "ours"]

        def cells(point: tuple[str, str], full: list[float] = full) -> str:
            mib = f"{memory[point] / 2**20:.0f}" if memory else "-"
            of_full = statistics.median(ratios(seconds[point], full))
            return f"{statistics.median(seconds[point]) * 1e3:9.1f}{mib:>7}{of_full:9.2f}"

        line = f"{name:22}{row.scope:>6}{cells((name, 'ours'))}"
        if name in FULL.values():
            pass
        elif reason := why_no_peer(row):
            line += f"  {row.package} ({reason})" if row.package else f"  ({reason})"
        else:
            version = importlib.metadata.version(row.package)
            of_peer = ratios(seconds[name, "ours"], seconds[name, "peer"])
            spread = f"{statistics.median(of_peer):.2f} ({min(of_peer):.2f}-{max(of_peer):.2f})"
            line += f"  {row.package + ' ' + version:44}{cells((name, 'peer'))}{spread:>24}"
            if memory:
                line += f"{memory[name, 'ours'] / memory[name, 'peer']:8.2f}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of every mechanism, beside packages for the same.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--only", nargs="+", choices=list(ROWS), metavar="NAME", help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--no-memory", action="store_true", help="time only: no process per point")
    parser.add_argument("--point", nargs=3, metavar=("NAME", "SIDE", "LENGTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", FutureWarning)  # a peer selects kernels in a deprecated way
    if arguments.point:
        name, side, length = arguments.point
        print(extra_peak(name, side, int(length)))
        return

    known = choices_of("attention", [config_directory()])
    wanted = [name for name in ROWS if arguments.only is None or name in arguments.only]
    for name in wanted:
        if ROWS[name].attention not in known:
            print(f"{name}: skipped, there is no attention={name} in this lcbench.")
    wanted = [name for name in wanted if ROWS[name].attention in known]
    needed = {FULL[ROWS[name].scope] for name in wanted}
    names = [name for name in ROWS if name in wanted or name in needed]
    for length in arguments.lengths:
        table(names, length, arguments)


if __name__ == "__main__":
    main()
