"""The one scoring function: both paths, what may be seen, and the hand-written backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lcbench.attention import explicit, scoring
from lcbench.attention.base import Context
from lcbench.attention.cache import KeyValues
from lcbench.attention.pairs import Pairs
from lcbench.attention.reach import Window
from lcbench.attention.scoring import attend
from lcbench.position.alibi import Alibi
from lcbench.position.base import LayerShape, PositionEncoding
from lcbench.position.cope import Cope
from lcbench.position.none import NoPosition
from lcbench.position.relative import Relative
from lcbench.position.t5 import T5
from lcbench.position.transformer_xl import TransformerXL
from tests.position.harness import CASES, IDS, SHAPE, attention, build, consecutive, distance, draw

TIME = 9
every_case = pytest.mark.parametrize(("name", "encoding", "options"), CASES, ids=IDS)
EXPLICIT = [case for case in CASES if case[0].startswith(("relative", "transformer_xl", "t5", "cope", "dynamic_ntk"))]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two queries of one batch row; some are kept for the backward pass, some are made again."""
    monkeypatch.setattr(explicit, "room_for_blocks", lambda *tensors: 50)
    monkeypatch.setattr(explicit, "_PAIRS", 1)
    monkeypatch.setattr(explicit, "_LEAST_ROWS", 2)
    monkeypatch.setattr(scoring, "_FUSED_ROWS", 2)


def literal(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Softmax over the visible keys, ``visible`` ``[batch, q_time, k_time]``; 0 where there are none."""
    weights = torch.exp(q @ k.mT / q.shape[-1] ** 0.5) * visible[:, None]
    return weights @ v / weights.sum(-1, keepdim=True).clamp(min=1e-300)


def in_window(time: int, window: int, causal: bool) -> Tensor:
    n = torch.arange(time)[:, None] - torch.arange(time)
    return ((n >= 0) & (n < window)) if causal else (n.abs() < window)


@pytest.fixture(params=["fused", "explicit"])
def encoding(request: pytest.FixtureRequest) -> PositionEncoding:
    """Adds nothing, by either path."""
    made = Relative(SHAPE, context=TIME).double()
    with torch.no_grad():
        made.table.zero_()
    return NoPosition(SHAPE) if request.param == "fused" else made


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 9, 20])
@pytest.mark.usefixtures("small_blocks")
def test_windows_hold_as_many_keys_as_they_say(encoding: PositionEncoding, causal: bool, window: int | None) -> None:
    q, k, v, x = draw(TIME)
    ours = attention(
        encoding, (q, k, v, x), consecutive(TIME), causal=causal, reach=None if window is None else Window(window)
    )
    visible = in_window(TIME, window or 100, causal).expand(2, TIME, TIME)
    assert distance(ours, literal(q, k, v, visible)) < 1e-12
    if window == 1:
        assert distance(ours, v) < 1e-12


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.usefixtures("small_blocks")
def test_documents_padding_and_window_together(encoding: PositionEncoding, causal: bool) -> None:
    q, k, v, x = draw(TIME)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [5] * 9])
    padding = torch.tensor([[False] * 9, [True, True, False, False, True, False, False, False, True]])
    positions = torch.arange(TIME).expand(2, TIME)
    context = Context(positions, documents=documents, padding=padding, consecutive=False)
    visible = in_window(TIME, 3, causal) & (documents[:, :, None] == documents[:, None]) & ~padding[:, None]
    ours = attention(encoding, (q, k, v, x), context, causal=causal, reach=Window(3))
    theirs = literal(q, k, v, visible)
    # what padding reads is nobody's business
    ours, theirs = (o.masked_fill(padding[:, None, :, None], 0) for o in (ours, theirs))
    assert distance(ours, theirs) < 1e-12
    for a, b in zip(
        torch.autograd.grad(ours.sum(), (q, k, v)), torch.autograd.grad(theirs.sum(), (q, k, v)), strict=True
    ):
        assert distance(a, b) < 1e-12


def test_a_query_that_sees_nothing_reads_zero_and_sends_no_gradient(encoding: PositionEncoding) -> None:
    q, k, v, x = draw(TIME)
    padding = torch.zeros(2, TIME, dtype=torch.bool)
    padding[0] = True
    output = attention(encoding, (q, k, v, x), Context(torch.arange(TIME).expand(2, TIME), padding=padding))
    assert not bool(output[0].any())
    for gradient in torch.autograd.grad(output.square().sum(), (q, k, v)):
        assert not bool(gradient[0].any())
        assert bool(gradient[1].any())


def test_documents_known_on_one_side_only_count_as_document_zero(encoding: PositionEncoding) -> None:
    q, k, v, x = draw(TIME)
    keys = KeyValues(k, v, encoding.key_features(x, k, v), positions=torch.arange(TIME).expand(2, TIME))
    marked = torch.tensor([0] * 8 + [1]).expand(2, TIME)
    ours = attend(q, Context(keys.positions, documents=marked), keys, encoding)
    unmarked = attend(q, Context(keys.positions), keys, encoding)
    assert distance(ours[:, :, :8], unmarked[:, :, :8]) < 1e-12
    assert not bool(ours[:, :, 8].any())


@pytest.mark.parametrize("documents", [[[3] * 9, [0, 0, 0, 0, 1, 1, 1, 1, 1]], [[0, 0, 0, 0, 1, 1, 1, 1, 1], [3] * 9]])
@every_case
def test_rows_of_one_document_are_read_as_without_a_name(
    name: str, encoding: type[PositionEncoding], options: dict[str, Any], documents: list[list[int]]
) -> None:
    """Whether they come first, and need no mask, or behind others; outputs and gradients."""
    made = build(encoding, options)
    named = torch.tensor(documents)
    positions = torch.arange(TIME) - torch.where(named == 1, 4, 0)
    drawn = draw(TIME)
    whole, mixed = (0, 1) if documents[0][0] == 3 else (1, 0)
    alone = [tuple(tensor[row : row + 1] for tensor in drawn) for row in (whole, mixed)]
    expected = torch.cat(
        [
            attention(made, alone[0], Context(positions[whole : whole + 1])),
            torch.cat(
                [
                    attention(
                        made,
                        tuple(t[:, :, span] if t.dim() == 4 else t[:, span] for t in alone[1]),
                        Context(positions[mixed : mixed + 1, span]),
                    )
                    for span in (slice(0, 4), slice(4, TIME))
                ],
                2,
            ),
        ]
    )  # the row of one document, then the other
    ours = attention(made, drawn, Context(positions, documents=named))[[whole, mixed]]
    assert distance(ours, expected) < 1e-12
    weight = torch.randn_like(ours)
    for gradient, of_expected in zip(
        torch.autograd.grad((ours * weight).sum(), drawn[:3]),
        torch.autograd.grad((expected * weight).sum(), drawn[:3]),
        strict=True,
    ):
        assert distance(gradient, of_expected) < 1e-12


def test_more_queries_than_keys_have_no_causal_order() -> None:
    q, k, v, _ = draw(TIME)
    context = consecutive(4)
    keys = KeyValues.of(k[:, :, :4], v[:, :, :4], None, context)
    with pytest.raises(ValueError, match="9 queries"):
        attend(q, consecutive(TIME), keys, NoPosition(SHAPE))
    visible = torch.ones(2, TIME, 4, dtype=torch.bool)
    crossed = attend(q, consecutive(TIME), keys, NoPosition(SHAPE), causal=False)
    assert distance(crossed, literal(q, k[:, :, :4], v[:, :, :4], visible)) < 1e-12


@pytest.mark.parametrize(("made", "options"), [(T5, {}), (Alibi, {})])
def test_a_bias_gives_the_same_by_both_paths(made: type[PositionEncoding], options: dict[str, Any]) -> None:
    encoding, tensors, context = build(made, options), draw(TIME), consecutive(TIME)
    with torch.no_grad():
        fused = attention(encoding, tensors, context)
    run = explicit.Run(
        Pairs.of(context, KeyValues.of(*tensors[1:3], None, context), True, None),
        encoding,
        reads_content=False,
        has_bias=True,
        dropout=0.0,
        seed=0,
        differentiable=True,
    )
    ours = explicit.explicit(run, tensors[0], KeyValues.of(*tensors[1:3], None, context), *tensors[:2])
    assert distance(fused, ours) < 1e-12


@pytest.mark.parametrize(("name", "encoding", "options"), EXPLICIT)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.usefixtures("small_blocks")
def test_gradients_are_those_of_finite_differences(
    name: str, encoding: type[PositionEncoding], options: dict[str, Any], dropout: float
) -> None:
    shape = LayerShape(d_model=8, n_heads=2) if name != "dynamic_ntk" and "channels" not in options else SHAPE
    made = build(encoding, options, shape)
    tensors, context = draw(5, batch=1, seed=3, shape=shape), consecutive(5, batch=1)

    def output(*inputs: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same weights are dropped every time
        return attention(made, inputs[:4], context, dropout=dropout)

    assert torch.autograd.gradcheck(output, (*tensors, *made.parameters()), fast_mode=True)


def test_dropout_scales_what_it_keeps() -> None:
    q, k, _, x = draw(64, batch=8)
    v = torch.ones_like(q)
    kept = attention(NoPosition(SHAPE), (q, k, v, x), consecutive(64, batch=8), dropout=0.25)
    assert float(kept.detach().mean()) == pytest.approx(1, abs=0.03)
    assert float(kept.detach().std()) > 0.05
    first, second = (
        attention(NoPosition(SHAPE), (q, k, v, x), consecutive(64, batch=8), dropout=0.25) for _ in range(2)
    )
    assert distance(first, second) > 0.1


@pytest.mark.parametrize(
    ("name", "encoding", "options"),
    # dynamic_ntk would take long at this length
    [case for case in CASES if case[0] != "dynamic_ntk"],
)
def test_only_the_arguments_are_kept(name: str, encoding: type[PositionEncoding], options: dict[str, Any]) -> None:
    """Nothing of size time x time waits for the backward pass."""
    time = 600
    made, tensors = build(encoding, options | ({"max_length": time} if "max_length" in options else {})), draw(time)
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    documents = torch.arange(time).expand(2, time) // 100
    for context in (consecutive(time), Context(consecutive(time).positions, documents=documents)):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            attention(made, tensors, context)
        assert sizes
        assert max(sizes) <= max(tensors[0].numel(), 2 * time * SHAPE.d_model)


@pytest.mark.parametrize(("encoding", "per_pair"), [(Cope, explicit._PER_PAIR), (Relative, 1)])
def test_no_more_is_kept_than_queries_keys_and_values(
    encoding: type[PositionEncoding], per_pair: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explicit, "_PAIRS", 2**12)
    monkeypatch.setattr(explicit, "_KEPT", 2**13)
    made = build(encoding, {"context": 9})
    for time in (16, 300, 900):
        tensors = draw(time)
        room = max(2**13, 3 * tensors[0].numel())
        weighed = attention(made, tensors, consecutive(time)).grad_fn.weighed  # type: ignore[union-attr]
        kept = per_pair * sum(block.normalised.weights.numel() for block in weighed.values())
        assert kept == per_pair * 2 * 2 * 16**2 if time == 16 else room - per_pair * 2**13 < kept <= room
        with torch.no_grad():
            assert attention(made, tensors, consecutive(time)).grad_fn is None


@pytest.mark.parametrize("encoding", [Relative, TransformerXL])
def test_a_kept_block_holds_its_weights_and_no_other_number_of_a_pair(encoding: type[PositionEncoding]) -> None:
    made, time = build(encoding, {"context": 9} if encoding is Relative else {}), 64
    output = attention(made, draw(time), consecutive(time))
    pairs = 2 * 2 * time**2
    waiting = list(output.grad_fn.weighed.values())  # type: ignore[union-attr]
    nodes = [bias.edge.node for block in waiting for bias in block.biases]
    sizes, seen = [], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_saved_") and isinstance(saved := getattr(node, name), Tensor):
                sizes.append(saved.untyped_storage().nbytes() // saved.element_size())
    assert sizes
    assert max(sizes) < pairs
    assert sum(block.normalised.weights.numel() for block in waiting) == pairs


@every_case
def test_cost_can_be_counted_without_data(
    name: str, encoding: type[PositionEncoding], options: dict[str, Any]
) -> None:
    made = build(encoding, options).to("meta")
    tensors = [tensor.detach().to("meta").requires_grad_() for tensor in draw(TIME)]
    context = consecutive(TIME).map(lambda tensor: tensor.to("meta"))
    for dropout in (0.0, 0.1):
        with FlopCounterMode(display=False) as counter:
            attention(made, tensors, context, dropout=dropout).sum().backward()
        # forward 2 products and backward 4 at least, each 2 * batch * heads * time^2 * head_dim operations
        assert counter.get_total_flops() >= 6 * 2 * 2 * 2 * TIME**2 * SHAPE.head_dim


@every_case
def test_bfloat16_autocast_stays_close(name: str, encoding: type[PositionEncoding], options: dict[str, Any]) -> None:
    made = build(encoding, options).float()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(0.3)
    exact = [tensor.detach().float() for tensor in draw(32)]
    context = consecutive(32)
    if name == "absolute_learned":
        assert made.embed(exact[3], context.positions).dtype == torch.float32
    inputs = [tensor.bfloat16().requires_grad_() for tensor in exact]
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(made, inputs, context)
    assert output.dtype == torch.bfloat16
    reference = [tensor.bfloat16().float().requires_grad_() for tensor in exact]
    expected = attention(made, reference, context)
    assert distance(output.float(), expected) < 0.15
    output.float().square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(inputs[:3], reference[:3], strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        relative = (ours.grad.float() - theirs.grad).norm() / theirs.grad.norm()
        assert float(relative) < 0.1


def test_counting_survives_bfloat16() -> None:
    """Where gates count hundreds of keys, bfloat16 sums would stand still."""
    made = Cope(LayerShape(8, 1), context=600)
    with torch.no_grad():
        made.table[:, 0] = torch.arange(601) / 100
    q, k, v = torch.zeros(3, 1, 1, 600, 8).bfloat16()
    q[..., 0] = 1.0
    v[..., 0] = torch.arange(600)
    context = consecutive(600, batch=1)
    output = attend(q, context, KeyValues.of(k, v, None, context), made)
    exact = attend(q.double(), context, KeyValues.of(k.double(), v.double(), None, context), made.double())
    assert distance(output[0, 0, -1].double(), exact[0, 0, -1]) < 2.0


class TestAroundTheFunction:
    """What wraps a layer must still work."""

    context = consecutive(TIME)

    def gradients(self, call: Callable[..., Tensor], made: PositionEncoding, tensors: Any) -> list[Tensor]:
        return list(torch.autograd.grad(call().square().sum(), [*tensors[:3], *made.parameters()]))

    def test_checkpoint(self) -> None:
        made, tensors = build(Cope, {"context": TIME}), draw(TIME)

        def layer(*inputs: Tensor) -> Tensor:
            return attention(made, inputs, self.context, dropout=0.3)

        def seeded(call: Callable[[], Tensor]) -> list[Tensor]:
            torch.manual_seed(5)
            return self.gradients(call, made, tensors)

        plain = seeded(lambda: layer(*tensors))
        again = seeded(lambda: checkpoint(layer, *tensors, use_reentrant=False))  # type: ignore[arg-type, return-value]
        for a, b in zip(plain, again, strict=True):
            assert torch.equal(a, b)

    def test_compile(self) -> None:
        made, tensors = build(Relative, {"context": TIME}), draw(TIME)
        compiled = torch.compile(lambda *inputs: attention(made, inputs, self.context), backend="eager")
        plain = self.gradients(lambda: attention(made, tensors, self.context), made, tensors)
        for a, b in zip(plain, self.gradients(lambda: compiled(*tensors), made, tensors), strict=True):
            assert distance(a, b) < 1e-12

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @every_case
    def test_evaluation_equals_training(
        self, name: str, encoding: type[PositionEncoding], options: dict[str, Any], mode: Callable[[], Any]
    ) -> None:
        made, tensors = build(encoding, options), draw(TIME)
        expected = attention(made, tensors, self.context)
        with mode():
            inputs = [tensor.clone() for tensor in tensors]
            assert distance(attention(made, inputs, self.context), expected) < 1e-12

    def test_frozen_parameters_and_inputs(self) -> None:
        made, tensors = build(Cope, {"context": TIME}), draw(TIME)
        expected = self.gradients(lambda: attention(made, tensors, self.context), made, tensors)
        made.table.requires_grad_(False)
        q, k, v = tensors[0], tensors[1].detach(), tensors[2].detach()
        attention(made, (q, k, v, tensors[3]), self.context).square().sum().backward()
        assert made.table.grad is None
        assert q.grad is not None
        assert distance(q.grad, expected[0]) < 1e-12

    def test_no_second_derivative_in_silence(self) -> None:
        made, tensors = build(Relative, {"context": TIME}), draw(TIME)
        output = attention(made, tensors, self.context)
        (first,) = torch.autograd.grad(output.square().sum(), tensors[0], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()

    def test_a_parameter_changed_before_the_backward_pass_is_noticed(self) -> None:
        made, tensors = build(Cope, {"context": TIME}), draw(TIME)
        output = attention(made, tensors, self.context)
        with torch.no_grad():
            made.table.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()

    def test_two_backward_passes_through_one_graph(self) -> None:
        made, tensors = build(Cope, {"context": TIME}), draw(TIME)
        output = attention(made, tensors, self.context).square().sum()
        first, second = (torch.autograd.grad(output, tensors[:3], retain_graph=True) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)

    def test_nothing_given_is_changed(self) -> None:
        made, tensors = build(Cope, {"context": TIME, "gates": "values"}), draw(TIME)
        before = [tensor.detach().clone() for tensor in tensors]
        attention(made, tensors, self.context).sum().backward()
        for tensor, copy in zip(tensors, before, strict=True):
            assert torch.equal(tensor, copy)
