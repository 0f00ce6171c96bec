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

What differs on the peers' side:

- local-attention: its window holds one key more than its size says.
- linear-attention-transformer: softmax and exponential features in place of elu + 1, and blocks of 64, of which a
  token does not read its own. Its exact setting keeps a matrix for every token.
- compressive-transformer-pytorch: a learned table of distances. It freezes its map into keys and values after the
  first reconstruction loss; here that is undone before every segment.
- memorizing-transformers-pytorch: all heads share one key and value; an approximate index (HNSW), values on disk.
- transformers (BigBird, LongT5): both ways, where lcbench's rows are causal: it reads twice the local keys, and all
  summaries instead of half.
- transformers (Longformer): self-attention and a map back. It has no causal form: "longformer_both_ways" is
  compared, "longformer" is ours for language models. Windows of 256 tokens, both sides together, and 16 global tokens.
- recurrent-memory-transformer-pytorch: run with one residual stream, no XL memory and gradients through what is
  carried, which is RMT as published; it adds a null key and mixes values of layers.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lcbench
from lcbench.attention.base import Context
from lcbench.attention.full import Full
from lcbench.configs import choices_of, config_directory
from lcbench.cost.memory import peak_memory_bytes, reset_peak_memory
from lcbench.model.decoder import Decoder
from lcbench.model.recurrent_memory import RecurrentMemory
from lcbench.position.rope import Rope

WIDTH = VOCABULARY = 256
HEADS = 4
SEGMENT = 256  # also every window, cache and memory
COMPRESSED, RATE = 64, 4
RETRIEVED = 32
LAYERS, SLOTS = 2, 8
BLOCK = 50  # tokens before a landmark
GLOBALS = 16
#: of a decoder's gated feed-forward layer, as the peer computes it
D_FF = WIDTH * 4 * 2 // 3

#: one forward and backward pass
Step = Callable[[], None]
#: input to output and losses
Forward = Callable[[Tensor], Sequence[Tensor]]


def step_of(module: nn.Module, forward: Forward, x: Tensor) -> Step:
    """Forward and backward of ``module``: to its parameters, and to ``x`` where that is no token ids."""
    gradient = torch.randn(1, x.shape[1], WIDTH)
    if x.is_floating_point():
        x.requires_grad_()

    def run() -> None:
        module.zero_grad()
        x.grad = None
        y, *losses = forward(x)
        torch.autograd.backward([y, *losses], [gradient, *(torch.ones_like(loss) for loss in losses)])

    return run


def activations(length: int) -> Tensor:
    return torch.randn(1, length, WIDTH)


def token_ids(length: int) -> Tensor:
    return torch.randint(VOCABULARY, (1, length))


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


def local_attention(length: int) -> Step:
    from local_attention.transformer import LocalMHA

    module = LocalMHA(dim=WIDTH, window_size=SEGMENT, dim_head=WIDTH // HEADS, heads=HEADS, causal=True)
    return step_of(module, lambda x: [module(x)], activations(length))


def linear_attention_transformer(length: int) -> Step:
    from linear_attention_transformer.linear_attention_transformer import SelfAttention

    module = SelfAttention(WIDTH, HEADS, causal=True, blindspot_size=64)
    return step_of(module, lambda x: [module(x)], activations(length))


def infini_transformer(length: int) -> Step:
    from infini_transformer_pytorch.infini_transformer import CausalAttention

    module = CausalAttention(WIDTH, dim_head=WIDTH // HEADS, heads=HEADS, head_gate_init_value=0.0)
    module.norm = nn.Identity()

    def forward(x: Tensor) -> Sequence[Tensor]:
        outputs, memory = [], None
        for part in x.split(SEGMENT, 1):
            y, _, memory = module(part, past_memories=memory, return_new_memories=True)
            outputs.append(y)
        return [torch.cat(outputs, 1)]

    return step_of(module, forward, activations(length))


def compressive_transformer(length: int) -> Step:
    from compressive_transformer_pytorch.compressive_transformer_pytorch import SelfAttention

    module = SelfAttention(WIDTH, SEGMENT, SEGMENT, COMPRESSED, RATE, HEADS)
    # the package's model holds the table for all layers
    module.table = nn.Parameter(torch.zeros(HEADS, 2 * SEGMENT + COMPRESSED, WIDTH // HEADS))

    def forward(x: Tensor) -> Sequence[Tensor]:
        outputs, losses, memories = [], [], None
        for part in x.split(SEGMENT, 1):
            module.to_kv.weight.requires_grad_()
            held = 0 if memories is None else sum(memory.shape[1] for memory in memories)
            table = module.table[:, SEGMENT - part.shape[1] : held + SEGMENT]
            y, memories, loss = module(part, memories=memories, pos_emb=table)
            outputs.append(y)
            losses.append(loss.sum())
        return [torch.cat(outputs, 1), torch.stack(losses).mean()]

    return step_of(module, forward, activations(length))


def memorizing_transformers(length: int) -> Step:
    from memorizing_transformers_pytorch.knn_memory import KNNMemory
    from memorizing_transformers_pytorch.memorizing_transformers_pytorch import KNNAttention, T5RelativePositionBias

    width = WIDTH // HEADS
    sizes = {"dim": WIDTH, "heads": HEADS, "dim_head": width}
    module = KNNAttention(**sizes, num_retrieved_memories=RETRIEVED, xl_max_memories=SEGMENT)
    module.bias = T5RelativePositionBias(scale=width**0.5, heads=HEADS)
    with tempfile.TemporaryDirectory() as folder:  # the mapped file outlives its name
        memory = KNNMemory(width, length, 1, str(Path(folder) / "memory"), multiprocessing=False)

    def forward(x: Tensor) -> Sequence[Tensor]:
        memory.clear()
        outputs, cache = [], None
        for part in x.split(SEGMENT, 1):
            seen = part.shape[1] + (0 if cache is None else cache.shape[1])
            bias = module.bias(part.shape[1], seen, device=x.device)
            y, cache = module(part, knn_memory=memory, xl_memory=cache, rel_pos_bias=bias)
            outputs.append(y)
        return [torch.cat(outputs, 1)]

    return step_of(module, forward, activations(length))


def longformer(length: int) -> Step:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 1}
    attention = LongformerSelfAttention(
        LongformerConfig(**sizes, attention_window=[SEGMENT], attention_probs_dropout_prob=0.0), 0
    )
    module = nn.ModuleDict({"attention": attention, "output": nn.Linear(WIDTH, WIDTH)})
    is_global = torch.arange(length)[None] < GLOBALS
    mask = 10000.0 * is_global  # its convention: above zero is global, below is hidden
    facts = {"attention_mask": mask, "is_index_masked": mask < 0, "is_index_global_attn": is_global}

    def forward(x: Tensor) -> Sequence[Tensor]:
        return [module["output"](attention(x, **facts, is_global_attn=True)[0])]

    return step_of(module, forward, activations(length))


def recurrent_memory_transformer(length: int) -> Step:
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper

    sizes = {"num_tokens": VOCABULARY, "depth": LAYERS, "heads": HEADS, "dim_head": WIDTH // HEADS}
    places = {"abs_pos_emb": False, "rotary_pos_emb": True}
    published = {"use_xl_memories": False, "add_write_to_next_write_mem": True, "next_write_mem_stop_grad": False}
    module = RecurrentMemoryTransformerWrapper(
        RecurrentMemoryTransformer(
            WIDTH,
            **sizes,
            **places,
            **published,
            num_memory_tokens=SLOTS,
            seq_len=SEGMENT,
            use_flash_attn=True,
            emb_gradient_frac=1.0,
            num_residual_streams=1,
        )
    )
    return step_of(module, lambda tokens: [module(tokens)[0]], token_ids(length))


def bigbird(length: int) -> Step:
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    config = BigBirdConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, max_position_embeddings=length, attention_probs_dropout_prob=0.0
    )
    module, output = BigBirdBlockSparseAttention(config, seed=0), nn.Linear(WIDTH, WIDTH)
    masks = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, length), config.block_size)
    band, from_mask, to_mask, from_blocked = masks[1], masks[2], masks[3], masks[0]
    both = nn.ModuleList([module, output])

    def forward(x: Tensor) -> Sequence[Tensor]:
        return [output(module(x, band, from_mask, to_mask, from_blocked, from_blocked)[0])]

    return step_of(both, forward, activations(length))


def longt5(*, local: bool) -> Callable[[int], Step]:
    def make(length: int) -> Step:
        from transformers import LongT5Config
        from transformers.models.longt5 import modeling_longt5

        config = LongT5Config(d_model=WIDTH, d_kv=WIDTH // HEADS, num_heads=HEADS, dropout_rate=0.0)
        kind = "LongT5LocalAttention" if local else "LongT5TransientGlobalAttention"
        module = getattr(modeling_longt5, kind)(config, has_relative_attention_bias=True)
        mask = torch.ones(1, length)
        if local:
            mask = modeling_longt5._get_local_attention_mask(mask, module.block_len, mask.device)
        return step_of(module, lambda x: [module(x, mask=mask)[0]], activations(length))

    return make


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
