"""The packages that people install for a mechanism, as benchmarks/mechanisms.py runs them.

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

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

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
