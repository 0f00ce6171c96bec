"""Laws of how an output is computed: oracles, precision, determinism, gradients, compilation."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lcbench.attention.base import Attention
from lcbench.conformance import situations
from lcbench.conformance.situations import valid
from lcbench.conformance.subject import (
    ROWS,
    Finding,
    NotApplicableError,
    Oracle,
    Subject,
    ViolatedError,
    difference,
    differentiate,
    feed,
    projection,
    tensors,
)

#: agreement with an oracle, both in float64
EXACT = 1e-10
#: root mean square error that half precision may add to an output, as a share of its root mean square
HALF = 5e-2
#: the same for float32 against float64
SINGLE = 1e-2
#: far inside what long-context models read; bfloat16 cannot hold such a position, float32 angles still can
FAR = 32_768


def agrees_with_its_oracle(subject: Subject) -> Finding:
    """Outputs, gradients and the final state are those of a literal definition in float64."""
    return _agreement(subject, subject.oracle, together=False)


def agrees_with_its_oracle_both_ways(subject: Subject) -> Finding:
    """Where its tokens are read both ways, outputs and gradients are those of a literal definition in float64."""
    subject.require_together()
    return _agreement(subject, subject.oracle_together, together=True)


@torch.no_grad()
def degenerates_to_another(subject: Subject) -> Finding:
    """Where its definition says so, it equals another mechanism (full attention) with the same weights."""
    if subject.degenerate is None:
        raise NotApplicableError("No degenerate case was given.")
    torch.manual_seed(subject.seed)
    ours, other = (layer.to(subject.device, torch.float64).eval() for layer in subject.degenerate())
    worst, x = 0.0, subject.inputs(ROWS, subject.length).double()
    for context in subject.situations.values():
        keep = valid(context)
        for cuts in subject.chunkings.values():
            actual, expected = (feed(layer, x, context, cuts)[0] for layer in (ours, other))
            worst = max(worst, difference(actual[keep], expected[keep]))
    return Finding(f"{type(ours).__name__} against {type(other).__name__}, float64", worst, EXACT)


def bfloat16(subject: Subject) -> Finding:
    """In bfloat16 outputs and gradients are finite, and outputs are close to float32, at position 0 and far out."""
    layer, reference = _rounded(subject, torch.bfloat16, torch.float32)
    x, worst = subject.inputs(ROWS, subject.length).bfloat16(), 0.0
    for start in (0, FAR):
        context = subject.whole(ROWS, subject.length, start)
        y, gradients = differentiate(layer, x, context)
        if y.dtype != torch.bfloat16:
            raise ViolatedError(f"Outputs are {y.dtype}.")
        _require_finite([y, *gradients])
        expected, _ = feed(reference, x.float(), context)
        worst = max(worst, _error(y, expected))
    return Finding(f"weights and inputs in bfloat16; positions from 0 and {FAR}", worst, HALF)


def autocast(subject: Subject) -> Finding:
    """Under bfloat16 autocast outputs and gradients are finite and close to float32, fed whole and in chunks."""
    layer, worst = subject.fresh(torch.float32), 0.0
    x, context = subject.inputs(ROWS, subject.length).float(), subject.whole(ROWS, subject.length)
    expected, _ = feed(layer, x, context)
    for cuts in subject.chunkings.values():
        with torch.autocast(subject.device.type, torch.bfloat16):
            y, gradients = differentiate(layer, x, context, cuts)
        _require_finite([y, *gradients])
        worst = max(worst, _error(y, expected))
    return Finding(f"weights in float32; {len(subject.chunkings)} ways to feed", worst, HALF)


def large_inputs(subject: Subject) -> Finding:
    """Inputs 30 times larger than a normalised stream give finite outputs in every half precision."""
    x = 30 * subject.inputs(ROWS, subject.length)
    for dtype in (torch.bfloat16, torch.float16):
        layer = subject.fresh(dtype)
        for name in ("whole", "packed and padded"):
            y, gradients = differentiate(layer, x.to(dtype), subject.situations[name])
            # Gradients in float16 are the loss scaler's business.
            _require_finite([y, *gradients] if dtype == torch.bfloat16 else [y])
    return Finding("bfloat16 with gradients, float16")


@torch.no_grad()
def far_positions(subject: Subject) -> Finding:
    """At positions far out, the certified precision still agrees with float64."""
    layer, reference = _rounded(subject, subject.dtype, torch.float64)
    x, context = subject.inputs(ROWS, subject.length), subject.whole(ROWS, subject.length, FAR)
    error = _error(feed(layer, x, context)[0], feed(reference, x.double(), context)[0])
    half = subject.dtype in (torch.bfloat16, torch.float16)
    return Finding(f"positions from {FAR}", error, HALF if half else SINGLE)


def determinism(subject: Subject) -> Finding:
    """The same call gives the same bits, forward and backward."""
    x = subject.inputs(ROWS, subject.length)
    with _deterministic():
        for name in ("whole", "packed and padded", "jumping"):
            runs = [differentiate(subject.layer, x, subject.situations[name]) for _ in range(2)]
            _require_same_bits(runs, name)
    return Finding("two runs, outputs and gradients")


def determinism_in_training(subject: Subject) -> Finding:
    """In training mode the same seed gives the same bits, dropout included, forward and backward."""
    x, layer = subject.inputs(ROWS, subject.length), copy.deepcopy(subject.layer).train()
    with _deterministic():
        for name in ("whole", "packed and padded"):
            runs = []
            for _ in range(2):
                torch.manual_seed(subject.seed)
                runs.append(differentiate(layer, x, subject.situations[name]))
            _require_same_bits(runs, name)
    return Finding(f"two runs, dropout {subject.layer.shape.dropout}")


def evaluation_equals_training(subject: Subject) -> Finding:
    """Without dropout, training mode, evaluation without gradients, and inference mode give the same outputs; a
    mechanism whose evaluation differs by definition says so, and is not compared in training mode."""
    x, layer = subject.inputs(ROWS, subject.length), copy.deepcopy(subject.layer)
    layer.train(not (subject.layer.evaluation_differs and subject.layer.shape.dropout == 0))
    draws = []
    for seed in range(2):
        torch.manual_seed(seed)
        draws.append(feed(layer, x, subject.whole(ROWS, subject.length))[0])
    random = not torch.equal(*draws)
    if subject.layer.shape.dropout > 0:
        if not random:
            raise ViolatedError(f"Dropout is {subject.layer.shape.dropout}, and training drops nothing.")
        raise NotApplicableError("Dropout is on.")
    worst = 0.0
    for context in subject.situations.values():
        keep, trained = valid(context), feed(layer, x, context)[0]
        with torch.no_grad():
            worst = max(worst, difference(feed(subject.layer, x, context)[0][keep], trained[keep]))
        with torch.inference_mode():
            worst = max(worst, difference(feed(subject.layer, x, context)[0][keep], trained[keep]))
    compared = "evaluation with gradients" if subject.layer.evaluation_differs else "training"
    return Finding(f"{len(subject.situations)} situations, {compared}", worst, subject.tolerance())


def gradients_reach_every_parameter(subject: Subject) -> Finding:
    """Every parameter that may learn gets a finite gradient other than zero, from outputs or the layer's losses."""
    x, context = subject.inputs(ROWS, subject.length), subject.whole(ROWS, subject.length)
    _, (of_x, *gradients) = differentiate(subject.layer, x, context, auxiliary=True)
    _require_finite([of_x, *gradients])
    names = [name for name, parameter in subject.layer.named_parameters() if parameter.requires_grad]
    unreached = [name for name, gradient in zip(names, gradients, strict=True) if not gradient.any()]
    if unreached:
        raise ViolatedError(f"No gradient reaches {', '.join(unreached)}.")
    return Finding(f"{len(names)} parameters")


def shapes_need_no_data(subject: Subject) -> Finding:
    """Forward and backward run on fake tensors, which have shapes and no values: that is how costs are counted."""
    layer = subject.fresh().cpu()
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(1, subject.length, layer.shape.d_model, dtype=subject.dtype, requires_grad=True)
        y, _ = feed(layer, x, situations.whole(1, subject.length))
        (gradient,) = torch.autograd.grad(y.sum(), x)
    if not x.shape == y.shape == gradient.shape:
        raise ViolatedError(f"{list(x.shape)} became {list(y.shape)}, with gradient {list(gradient.shape)}.")
    return Finding("forward and backward")


def compiles(subject: Subject) -> Finding:
    """torch.compile gives the same outputs and gradients, fed whole and in chunks."""
    if subject.compile is None:
        raise NotApplicableError("Not asked for: compiling takes a minute or more.")
    worst, x, half = 0.0, subject.inputs(ROWS, subject.length), [subject.length // 2]
    for name, cuts in (("whole", []), ("packed and padded", half if subject.causal else [])):
        torch.compiler.reset()  # otherwise the number of recompilations meets torch's limit
        compiled, context = (
            torch.compile(copy.deepcopy(subject.layer), backend=subject.compile),
            subject.situations[name],
        )
        y, gradients = differentiate(compiled, x, context, cuts)  # type: ignore[arg-type]
        expected, expected_gradients = differentiate(subject.layer, x, context, cuts)
        keep = valid(context)
        worst = max(worst, difference(y[keep], expected[keep]), difference(gradients, expected_gradients) / 10)
    return Finding(f"backend {subject.compile}; gradients divided by 10", worst, subject.tolerance())


def _agreement(subject: Subject, oracle: Oracle | None, *, together: bool) -> Finding:
    """How far outputs, gradients and the final state are from those of ``oracle``."""
    if oracle is None:
        raise NotApplicableError("No oracle was given (an installed wheel carries none).")
    layer, worst, paths = subject.fresh(torch.float64), 0.0, set[str]()
    learning = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
    # One row suffices: batches, documents and padding are compared with single rows by other laws.
    x = subject.inputs(1, subject.length).double()
    for name in ("whole", "jumping"):
        context = subject.situations[name].map(lambda tensor: tensor[:1])
        context = dataclasses.replace(context, together=together)
        weights = {key: p.detach().cpu().clone().requires_grad_() for key, p in layer.named_parameters()}
        inputs, on_cpu = x[0].detach().cpu().requires_grad_(), context.map(Tensor.cpu)
        assert on_cpu.landmarks is not None
        answer = oracle(inputs, weights, on_cpu.positions[0], on_cpu.landmarks[0])
        expected, state = answer if isinstance(answer, tuple) else (answer, {})
        loss = (expected * projection(expected[None])[0]).sum()
        theirs = torch.autograd.grad(
            loss, [inputs, *(weights[key] for key in learning)], allow_unused=True, materialize_grads=True
        )
        y, gradients = differentiate(layer, x, context)
        held = tensors(feed(layer, x, context)[1])
        if missing := state.keys() - held.keys():
            raise ViolatedError(f"The state lacks {', '.join(sorted(missing))}.")
        paths |= state.keys()
        worst = max([worst, difference(y[0], expected), *(difference(held[path][0], state[path]) for path in state)])
        worst = max(worst, difference([gradients[0][0], *gradients[1:]], theirs))
    what = ", ".join(["outputs", "gradients of input and parameters", *sorted(paths)])
    return Finding(f"{what}; positions in order and jumping", worst, EXACT)


def _rounded(subject: Subject, low: torch.dtype, high: torch.dtype) -> tuple[Attention, Attention]:
    """Two layers with the same weights, all of which ``low`` can hold, computing in ``low`` and in ``high``."""
    layer = subject.fresh(low)
    return layer, copy.deepcopy(layer).to(high)


def _error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square error as a share of the root mean square of ``expected``. Not the largest error: where a
    mechanism chooses (top k, buckets), rounding may tip a single choice."""
    gap = actual.detach().double() - expected.detach().double()
    error = (gap.square().mean() / expected.detach().double().square().mean()).sqrt().item()
    return error if math.isfinite(error) else math.inf


def _require_finite(values: list[Tensor]) -> None:
    if not all(bool(value.isfinite().all()) for value in values):
        raise ViolatedError(
            "An output is not finite." if not values[0].isfinite().all() else "A gradient is not finite."
        )


def _require_same_bits(runs: list[tuple[Tensor, list[Tensor]]], situation: str) -> None:
    (y, gradients), (y_again, gradients_again) = runs
    if not torch.equal(y, y_again):
        raise ViolatedError(f"Two runs give different outputs ({situation}).")
    if not all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True)):
        raise ViolatedError(f"Two runs give different gradients ({situation}).")


@contextmanager
def _deterministic() -> Iterator[None]:
    """What a run with ``trainer.deterministic`` computes with; fused kernels on accelerators are not by default."""
    mode, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warns)
