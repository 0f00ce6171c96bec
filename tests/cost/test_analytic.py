"""Operations and bytes from shapes, against formulas and against a real step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcbench.attention.base import Attention, AttentionOutput, Context, State
from lcbench.attention.full import Full
from lcbench.cost.analytic import estimate, saved_bytes
from lcbench.errors import ConfigurationError
from lcbench.model.decoder import Decoder
from lcbench.model.lstm import LSTM
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.position.cope import Cope
from lcbench.position.none import NoPosition
from lcbench.position.rope import Rope

BATCH, TIME = 3, 40


def decoder(attention: Any = Full, position: Any = NoPosition, **options: Any) -> Decoder:
    return Decoder(17, attention, position, **{"d_model": 32, "n_layers": 3, "n_heads": 4, **options})


def matrix_parameters(model: nn.Module) -> int:
    """Weights that every token is multiplied by."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_operations_are_those_of_the_formula(activation: str) -> None:
    cost = estimate(lambda: decoder(activation=activation), (BATCH, TIME))
    linear = matrix_parameters(decoder(activation=activation)) * BATCH * TIME
    pairs = 3 * BATCH * 32 * TIME * (TIME + 1) // 2  # layers, batch, heads * head_dim, pairs of query and key
    assert cost.forward_operations == 2 * linear + 4 * pairs
    # Backward: two products for each one, and the scores once more.
    assert cost.training_operations == 6 * linear + (4 + 10) * pairs


def test_operations_are_about_six_per_parameter_and_token_in_a_large_model() -> None:
    def make() -> Decoder:
        return decoder(d_model=768, n_layers=12, n_heads=12, tie_embeddings=True)

    cost = estimate(make, (2, 256))
    attention = 12 * 12 * 768 * 2 * 256 * 256 // 2  # 6 * 2 operations for each pair and channel, half the pairs
    assert cost.training_operations == pytest.approx(6 * cost.parameters * 2 * 256 + attention, rel=0.02)


def test_operations_grow_with_the_square_of_length_where_attention_dominates() -> None:
    def operations(length: int) -> int:
        return estimate(lambda: decoder(d_model=8), (1, length)).training_operations

    assert operations(16384) / operations(8192) == pytest.approx(4, rel=0.05)


def real_saved_bytes(make: Callable[[], Any], dtype: torch.dtype = torch.float32) -> int:
    """What a real step on the CPU keeps."""
    torch.manual_seed(0)
    model = make().train()
    tokens = torch.randint(17, (BATCH, TIME))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        _, saved = saved_bytes(model, lambda: F.cross_entropy(model(tokens).logits.flatten(0, 1), tokens.flatten()))
    return saved


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": Rope},
        {"position": lambda shape: Cope(shape, p_max=16)},
        {"norm": "rms", "activation": "swiglu", "norm_position": "post", "tie_embeddings": True},
        {"position": lambda shape: Cope(shape, p_max=16), "dropout": 0.1},
    ],
    ids=["plain", "rope", "cope", "variants", "dropout"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_bytes_are_those_of_a_real_step(options: dict[str, Any], dtype: torch.dtype) -> None:
    def make() -> Decoder:
        return decoder(**options)

    assert estimate(make, (BATCH, TIME), activation_dtype=dtype).activation_bytes == real_saved_bytes(make, dtype)


def test_the_fused_kernel_keeps_no_pairs() -> None:
    def activations(length: int) -> int:
        return estimate(decoder, (1, length)).activation_bytes

    assert activations(4096) / activations(1024) == pytest.approx(4, rel=0.01)


class Explicit(Attention):
    """A user's own: one head that keeps all its weights, with dropout."""

    def __init__(self, shape: LayerShape, position: PositionEncoding) -> None:
        super().__init__(shape, position)
        self.map = nn.Linear(shape.d_model, shape.d_model)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weights = (self.map(x) @ x.mT).masked_fill(future, float("-inf")).softmax(-1)
        return AttentionOutput(F.dropout(weights, 0.1, self.training) @ x, None)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return 0


def test_a_users_own_attention_is_counted() -> None:
    cost = estimate(lambda: decoder(attention=Explicit), (BATCH, TIME))
    linear = matrix_parameters(decoder(attention=Explicit)) * BATCH * TIME
    assert cost.forward_operations == 2 * linear + 3 * BATCH * 2 * 2 * TIME * TIME * 32
    assert cost.activation_bytes == real_saved_bytes(lambda: decoder(attention=Explicit))
    assert cost.state_bytes == 8 * BATCH


class Peeking(Explicit):
    """Reads a value."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        return super().forward(x * (1 if x.sum().item() > 0 else 2), context, state)


def test_a_model_that_reads_values_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"^cost: [^\n]*\.$"):
        estimate(lambda: decoder(attention=Peeking), (BATCH, TIME))


def test_bytes_of_weights_gradients_optimizer_and_state() -> None:
    model = decoder(tie_embeddings=True)
    model.layers.requires_grad_(False)

    def make() -> Decoder:
        frozen = decoder(tie_embeddings=True)
        frozen.layers.requires_grad_(False)
        return frozen

    cost = estimate(make, (BATCH, TIME), activation_dtype=torch.bfloat16)
    weights = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < trained < weights
    assert (cost.parameters, cost.weight_bytes) == (trained, 4 * weights)
    assert (cost.gradient_bytes, cost.optimizer_bytes) == (4 * trained, 8 * trained)
    with torch.autocast("cpu", torch.bfloat16):
        assert cost.state_bytes == decoder()(torch.zeros(BATCH, TIME, dtype=torch.int64)).state.nbytes
    assert cost.training_bytes == 4 * weights + 12 * trained + cost.activation_bytes


def test_an_lstm_is_counted_too() -> None:
    cost = estimate(lambda: LSTM(17, d_model=32), (BATCH, TIME))
    assert cost.forward_operations == 2 * BATCH * TIME * (2 * 4 * 32 * 32 + 17 * 32)
    assert cost.training_operations == 3 * cost.forward_operations
    assert cost.state_bytes == LSTM(17, d_model=32)(torch.zeros(BATCH, TIME, dtype=torch.int64)).state.nbytes


def test_nothing_is_allocated_and_no_random_number_is_drawn() -> None:
    before = torch.random.get_rng_state()
    cost = estimate(lambda: decoder(d_model=32768, n_layers=8, n_heads=128), (1, 2**17))
    assert cost.parameters > 10**11
    assert cost.training_bytes > 10**12
    assert torch.equal(before, torch.random.get_rng_state())
