"""The decoder against its oracle, and what it promises of state, documents, initialisation and sharing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lcbench.attention.base import Attention, AttentionOutput, Context, Facts, State
from lcbench.attention.full import Full
from lcbench.attention.infini import Infini
from lcbench.attention.linear import Linear
from lcbench.errors import ConfigurationError
from lcbench.model.decoder import Decoder, FeedForward, SwiGLU
from lcbench.model.lstm import LSTM
from lcbench.model.recurrent_memory import RecurrentMemory
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.position.none import NoPosition
from tests.oracles import decoder as oracle


class Sinusoid(PositionEncoding):
    """An absolute encoding: makes a token's position visible in the logits."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        frequencies = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype) / 5
        return x + torch.sin(positions[..., None] * frequencies)


def make(attention: Any = Full, position: Any = NoPosition, vocabulary: int = 11, **options: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(vocabulary, attention, position, **{"d_model": 8, "n_heads": 2, **options}).double().eval()


@pytest.mark.parametrize(
    ("norm_position", "norm", "activation", "tied"),
    itertools.product(["pre", "post"], ["layer", "rms"], ["relu", "gelu", "swiglu"], [True, False]),
)
def test_logits_are_those_of_the_oracle(norm_position: str, norm: str, activation: str, tied: bool) -> None:
    n_layers, bias = (1, False) if tied else (2, True)
    model = make(
        n_layers=n_layers,
        norm_position=norm_position,
        norm=norm,
        activation=activation,
        tie_embeddings=tied,
        bias=bias,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # norms' weights are not 1, biases not 0
    tokens = torch.randint(11, (2, 6))
    expected = torch.stack(
        [
            oracle.logits(
                row,
                model.state_dict(),
                n_layers=n_layers,
                n_heads=2,
                norm=norm,
                norm_position=norm_position,
                activation=activation,
            )
            for row in tokens
        ]
    )
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-10, atol=1e-10)


def test_hidden_is_what_the_output_map_reads() -> None:
    model = make()
    output = model(torch.randint(11, (2, 5)))
    assert output.hidden.shape == (2, 5, 8)
    torch.testing.assert_close(output.hidden @ model.output.weight.T, output.logits)


@pytest.mark.parametrize("cuts", [[4, 3], [1] * 7, [6, 1]])
def test_chunks_of_any_size_give_the_whole_sequences_logits(cuts: list[int]) -> None:
    model = make(position=Sinusoid)
    tokens = torch.randint(11, (3, 7))
    pieces, state = [], None
    for chunk in tokens.split(cuts, 1):
        output = model(chunk, state=state)
        pieces.append(output.logits)
        state = output.state
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens).logits)


def test_packed_documents_are_read_as_if_alone_across_the_border_of_two_calls() -> None:
    model = make(position=Sinusoid)
    first, second = torch.randint(11, (1, 3)), torch.randint(11, (1, 5))
    packed = torch.cat([first, second], 1)
    documents = torch.tensor([[7] * 3 + [9] * 5])
    pieces, state = [], None
    for tokens, names in zip(packed.split(5, 1), documents.split(5, 1), strict=True):
        output = model(tokens, Facts(documents=names), state)
        pieces.append(output.logits)
        state = output.state
    expected = torch.cat([model(first).logits, model(second).logits], 1)
    torch.testing.assert_close(torch.cat(pieces, 1), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_even_when_the_sequence_goes_on_after_it(side: str) -> None:
    model = make(position=Sinusoid)
    tokens, further = torch.randint(11, (1, 4)), torch.randint(11, (1, 3))
    pads = torch.zeros(1, 2, dtype=torch.int64)
    padded = torch.cat([pads, tokens] if side == "left" else [tokens, pads], 1)
    own = slice(2, 6) if side == "left" else slice(0, 4)
    padding = torch.ones(1, 6, dtype=torch.bool)
    padding[:, own] = False
    first = model(padded, Facts(padding=padding))
    second = model(further, state=first.state)
    whole = model(torch.cat([tokens, further], 1)).logits
    torch.testing.assert_close(torch.cat([first.logits[:, own], second.logits], 1), whole)


def test_a_reset_row_reads_as_at_the_start_and_the_others_go_on() -> None:
    model = make(position=Sinusoid)
    tokens, further = torch.randint(11, (2, 4)), torch.randint(11, (2, 3))
    state = model(tokens).state
    logits = model(further, state=state.reset(torch.tensor([True, False]))).logits
    torch.testing.assert_close(logits[0], model(further).logits[0])
    torch.testing.assert_close(logits[1], model(further, state=state).logits[1])
    swapped = model(further.flip(0), state=state.select(torch.tensor([1, 0]))).logits
    torch.testing.assert_close(swapped.flip(0), model(further, state=state).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_bytes_are_those_of_the_real_state(dtype: torch.dtype) -> None:
    model = make().to(dtype)
    for length in (1, 5):
        assert model(torch.randint(11, (3, length))).state.nbytes == model.state_bytes(3, length, dtype)


def test_the_cope_papers_toy_model_is_expressed_exactly() -> None:
    model = Decoder(
        21,
        Full,
        NoPosition,
        d_model=256,
        n_layers=4,
        n_heads=4,
        activation="relu",
        norm_position="post",
        tie_embeddings=True,
        dropout=0.1,
    )
    per_layer = 4 * (256 * 256 + 256) + (256 * 1024 + 1024) + (1024 * 256 + 256) + 2 * 2 * 256
    assert sum(p.numel() for p in model.parameters()) == 4 * per_layer + 21 * 256 == 3_164_416
    assert model.output.weight is model.embedding.weight
    assert not any("final_norm" in name for name, _ in model.named_parameters())
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.1}
    assert [attention.shape.dropout for attention in model.attentions] == [0.1] * 4


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_initial_weights_have_the_stated_spread(norm_position: str) -> None:
    torch.manual_seed(0)
    d_model, n_layers, d_ff = 128, 3, 320
    model = Decoder(1000, Full, NoPosition, d_model=d_model, n_layers=n_layers, d_ff=d_ff, norm_position=norm_position)

    def close(weight: Tensor, deviation: float) -> bool:
        return abs(weight.std().item() / deviation - 1) < 0.03 and abs(weight.mean().item()) < 0.03 * deviation

    residual = (2 * n_layers) ** -0.5 if norm_position == "pre" else 1.0
    assert close(model.embedding.weight, d_model**-0.5)
    assert close(model.output.weight, (3 * d_model) ** -0.5)
    for layer, attention in zip(model.layers, model.attentions, strict=True):
        network = layer.feed_forward
        assert isinstance(network, FeedForward)
        assert close(network.inner.weight, (3 * d_model) ** -0.5)
        assert close(network.output.weight, (3 * d_ff) ** -0.5 * residual)
        assert network.output.weight.abs().max() <= d_ff**-0.5 * residual
        assert 0.9 < network.output.bias.abs().max() / (d_ff**-0.5 * residual) <= 1
        assert attention.shape.residual_scale == pytest.approx(residual)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all()


class RunningMean(Attention):
    """Every token reads the mean of its past."""

    def __init__(self, shape: LayerShape, position: PositionEncoding) -> None:
        super().__init__(shape, position)
        self.output = shape.into_residual(nn.Linear(shape.d_model, shape.d_model))

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        return AttentionOutput(self.output(x.cumsum(1) / count), None)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return 0


def test_a_deep_pre_norm_stream_starts_no_wider_than_a_shallow_one() -> None:
    def spread(n_layers: int) -> float:
        torch.manual_seed(0)
        model = Decoder(50, RunningMean, NoPosition, d_model=64, n_layers=n_layers)
        streams: list[Tensor] = []
        model.final_norm.register_forward_pre_hook(lambda module, inputs: streams.append(inputs[0]))
        model(torch.randint(50, (4, 32)))
        return streams[0].std().item()

    assert spread(32) < 1.3 * spread(2)


class Recorded(PositionEncoding):
    """Remembers what it was told to share and how often it embedded."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape)
        self.first: list[PositionEncoding] = []
        self.embedded = 0

    def share(self, first: PositionEncoding) -> None:
        self.first = [first]

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        self.embedded += 1
        return x


class Losing(Attention):
    """Returns the input, its mean as a loss, and no state."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        assert state is None
        return AttentionOutput(x, None, {"mean": x.mean(), f"layer_{self.shape.layer}": x.new_ones(())})

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return 0


def test_layers_share_with_the_first_which_alone_embeds_and_their_losses_add_up() -> None:
    model = make(attention=Losing, position=Recorded, n_layers=3)
    encodings = [attention.position for attention in model.attentions]
    assert [encoding.shape.layer for encoding in encodings] == [0, 1, 2]
    inputs: list[Tensor] = []
    for attention in model.attentions:
        attention.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    output = model(torch.randint(11, (2, 4)))
    assert [encoding.first for encoding in encodings] == [[], [encodings[0]], [encodings[0]]]  # type: ignore[comparison-overlap]
    assert [encoding.embedded for encoding in encodings] == [1, 0, 0]
    assert set(output.losses) == {"mean", "layer_0", "layer_1", "layer_2"}
    torch.testing.assert_close(output.losses["mean"], sum(x.mean() for x in inputs))
    assert output.state.layers == (None, None, None)
    again = model(torch.randint(11, (2, 1)), state=output.state)
    assert again.state.next_position.tolist() == [5, 5]


@pytest.mark.parametrize(("d_model", "width"), [(64, 168), (256, 680), (8, 24), (1, 8)])
def test_swiglu_keeps_the_parameters_of_two_maps_four_times_as_wide(d_model: int, width: int) -> None:
    network = Decoder(5, Losing, NoPosition, d_model=d_model, n_heads=1, activation="swiglu").layers[0].feed_forward
    assert isinstance(network, SwiGLU)
    assert network.inner.out_features == network.gate.out_features == width


def test_biases_can_be_left_out_everywhere() -> None:
    assert not [name for name, _ in make(bias=False, activation="swiglu").named_parameters() if name.endswith("bias")]


def test_dropout_acts_in_training_alone() -> None:
    model = make(dropout=0.5)
    tokens = torch.randint(11, (2, 6))
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide model.d_model=8; the closest that does is model.n_heads=2"),
        ({"n_layers": 0}, "model.n_layers=1"),
        ({"d_model": 0}, "model.d_model=1"),
        ({"d_ff": 0}, "model.d_ff=1"),
        ({"dropout": 1.0}, "model.dropout=0.9"),
        ({"dropout": -0.1}, "model.dropout=0.0"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_closest_choice(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(**options)
    assert hint in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_forward_pass_works_without_values() -> None:
    model = make().to("meta")
    tokens = torch.zeros(2, 5, dtype=torch.int64, device="meta")
    output = model(tokens, Facts(documents=tokens, padding=tokens > 0))
    assert model(tokens, state=output.state).logits.shape == (2, 5, 11)


def test_a_state_of_other_rows_or_of_another_network_is_refused() -> None:
    tokens = torch.zeros(3, 5, dtype=torch.int64)

    def network(attention: Any = Full, **sizes: Any) -> Decoder:
        return Decoder(11, attention, NoPosition, **{"d_model": 8, "n_heads": 2, **sizes})

    state = network()(tokens).state
    with pytest.raises(ConfigurationError, match=r"state of 3 rows .* batch of 2"):
        network()(tokens[:2], None, state)
    assert network()(tokens[:2], None, state.select(torch.tensor([0, 2]))).logits.shape == (2, 5, 11)
    for other in (network(d_model=16), network(n_layers=3), network(Linear), network(Infini)):
        with pytest.raises(ConfigurationError, match=r"made by 2 layers of Full, width 8, 2 heads, and this is"):
            other(tokens, None, state)
    inner = RecurrentMemory(11, Full, NoPosition, d_model=8, n_heads=2, segment=4)
    for other in (inner, RecurrentMemory(11, Full, NoPosition, d_model=8, n_heads=2, segment=5), LSTM(11, d_model=8)):
        with pytest.raises(ConfigurationError, match="another network"):
            other(tokens, None, state if other is inner else inner(tokens).state)
