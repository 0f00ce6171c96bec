"""Laws of the state that a layer carries from call to call."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lcbench.attention.base import Attention, Context, State
from lcbench.conformance.situations import landmarks, valid
from lcbench.conformance.subject import (
    ROWS,
    Finding,
    Subject,
    ViolatedError,
    difference,
    feed,
    piece,
    state_after,
    state_difference,
    tensors,
)

#: a dropped state must change outputs by at least this share of their root mean square
NOTICEABLE = 1e-3


def state_detaches(subject: Subject) -> Finding:
    """A detached state holds the same values and passes no gradient back."""
    subject.require_causal()
    x, context, cut = _halves(subject)
    first = x[:, :cut].clone().requires_grad_()
    state = state_after(subject.layer, first, piece(context, 0, cut))
    detached = state.detach()
    if type(detached) is not type(state):
        raise ViolatedError(f"{type(state).__name__} became {type(detached).__name__}.")
    worst = state_difference(detached, state)
    if any(tensor.requires_grad for tensor in tensors(detached).values()):
        raise ViolatedError("A tensor of the detached state still requires a gradient.")
    if state.nbytes != sum(tensor.numel() * tensor.element_size() for tensor in tensors(state).values()):
        raise ViolatedError("nbytes is not the sum over the tensors of the state.")
    y, _ = feed(subject.layer, x[:, cut:], piece(context, cut, subject.length), state=detached)
    (gradient,) = torch.autograd.grad(y.sum() + first.sum() * 0, first)
    if gradient.any():
        raise ViolatedError("A gradient passes through the detached state.")
    return Finding("values, type, bytes, gradient", worst, 0.0)


@torch.no_grad()
def state_selects_rows(subject: Subject) -> Finding:
    """Continuing from selected rows of a state gives those rows' outputs."""
    subject.require_causal()
    rows, worst = torch.tensor([2, 0, 0], device=subject.device), 0.0
    for context in subject.situations.values():
        x, cut = subject.inputs(ROWS, subject.length), subject.length // 2
        rest = piece(context, cut, subject.length)
        state = state_after(subject.layer, x[:, :cut], piece(context, 0, cut))
        expected, _ = feed(subject.layer, x[:, cut:], rest, state=state)
        chosen = rest.map(lambda tensor: tensor[rows])
        actual, _ = feed(subject.layer, x[rows, cut:], chosen, state=state.select(rows))
        keep = valid(chosen)
        worst = max(worst, difference(actual[keep], expected[rows][keep]))
    return Finding(f"rows 2, 0, 0 of 3; {len(subject.situations)} situations", worst, subject.tolerance())


@torch.no_grad()
def state_resets_rows(subject: Subject) -> Finding:
    """A row that is reset continues as a fresh start; the others continue as if nothing had happened."""
    subject.require_causal()
    x, context, worst = subject.inputs(ROWS, subject.length), subject.whole(ROWS, subject.length), 0.0
    cuts = sorted({1, 2, subject.length // 3, subject.length // 2, subject.length - 5})
    second = torch.tensor([False, True, False], device=subject.device)
    for cut in cuts:
        rest, count = piece(context, cut, subject.length), subject.length - cut
        positions = torch.where(second[:, None], rest.positions - cut, rest.positions)
        restarted = dataclasses.replace(rest, positions=positions, landmarks=landmarks(positions))
        state = state_after(subject.layer, x[:, :cut], piece(context, 0, cut))
        undisturbed, _ = feed(subject.layer, x[:, cut:], rest, state=state)
        fresh, _ = feed(subject.layer, x[1:2, cut:], subject.whole(1, count))
        for chunks in ([], [1], [count // 2]):
            actual, _ = feed(subject.layer, x[:, cut:], restarted, chunks, state.reset(second))
            worst = max(worst, difference(actual[1:2], fresh), difference(actual[::2], undisturbed[::2]))
    return Finding(f"reset after {', '.join(map(str, cuts))} tokens", worst, subject.tolerance())


def nothing_changes_in_place(subject: Subject) -> Finding:
    """A call leaves its inputs, its context, its state and earlier outputs as they were, forward and backward."""
    for name in ("whole", "packed and padded"):
        context, cut = subject.situations[name], subject.length // 2
        x = subject.inputs(ROWS, subject.length).requires_grad_()
        earlier, state = feed(subject.layer, x[:, :cut], piece(context, 0, cut))
        watched = tensors(state) | _facts(context) | {"x": x, "an earlier output": earlier}
        copies = {key: tensor.detach().clone() for key, tensor in watched.items()}
        if state is not None:
            state.reset(torch.ones(ROWS, dtype=torch.bool, device=subject.device))
        for chunks in ([], [1, 2]) if subject.causal else ([],):
            y, _ = feed(subject.layer, x[:, cut:], piece(context, cut, subject.length), chunks, state)
            torch.autograd.grad(y.sum(), x, retain_graph=True)
            with torch.no_grad():
                feed(subject.layer, x[:, cut:], piece(context, cut, subject.length), chunks, state)
        changed = [key for key, tensor in watched.items() if not torch.equal(tensor, copies[key])]
        if changed:
            raise ViolatedError(f"Changed by a later call: {', '.join(changed)}.")
    return Finding("inputs, context, state, earlier outputs")


@torch.no_grad()
def state_bytes(subject: Subject) -> Finding:
    """``state_bytes`` is exactly what the state holds, at every length, batch size and precision."""
    subject.require_causal()
    long = max(subject.length, min(14 * subject.length - 3, 2048))
    lengths = sorted({1, 2, 3, 7, subject.length // 2, subject.length - 1, subject.length, long})
    worst, where = 0, ""
    for dtype in (subject.dtype, torch.bfloat16):
        layer = subject.fresh(dtype)
        for batch in (1, 2):
            for length in lengths:
                x, context = subject.inputs(batch, length).to(dtype), subject.whole(batch, length)
                held, formula = state_after(layer, x, context).nbytes, layer.state_bytes(batch, length, dtype)
                if abs(held - formula) > worst:
                    worst = abs(held - formula)
                    where = f"; batch {batch}, {length} tokens, {dtype}: {held} bytes held, {formula} by the formula"
    return Finding(f"lengths {', '.join(map(str, lengths))}{where}", worst, 0)


@torch.no_grad()
def state_keeps_nothing_else_alive(subject: Subject) -> Finding:
    """A state's tensors are not views of something larger, whose memory would stay taken."""
    subject.require_causal()
    state = state_after(subject.layer, subject.inputs(ROWS, subject.length), subject.whole(ROWS, subject.length))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(state).values()}
    ratio = sum(storages.values()) / max(state.nbytes, 1)
    return Finding("memory kept alive, as a multiple of the state's bytes", ratio, 2.0)


@torch.no_grad()
def state_is_used(subject: Subject) -> Finding:
    """In a stack of two layers, dropping either layer's state changes what follows."""
    subject.require_causal()
    layers = (subject.fresh(number=1), subject.fresh(number=2))
    x, context = subject.inputs(ROWS, subject.length), subject.whole(ROWS, subject.length)
    changes = [0.0, 0.0]
    for cut in (subject.length // 3, subject.length // 2, subject.length // 2 + 1, subject.length - 3):
        _, states = _stack(layers, x[:, :cut], piece(context, 0, cut), (None, None))
        second = (x[:, cut:], piece(context, cut, subject.length))
        expected, _ = _stack(layers, *second, states)
        for layer in range(2):
            kept = (None, states[1]) if layer == 0 else (states[0], None)
            changes[layer] = max(changes[layer], difference(_stack(layers, *second, kept)[0], expected))
    for layer, change in enumerate(changes):
        if change < NOTICEABLE:
            raise ViolatedError(f"Dropping the state of layer {layer} changes the outputs by {change:.2g}.")
    return Finding("smallest change of the outputs by dropping a layer's state", min(changes))


def _stack(
    layers: tuple[Attention, Attention], x: Tensor, context: Context, states: tuple[State | None, State | None]
) -> tuple[Tensor, tuple[State | None, State | None]]:
    """Two layers with residual connections: outputs ``[batch, time, d_model]`` and both states."""
    first = layers[0](x, context, states[0])
    hidden = x + first.y
    second = layers[1](hidden, context, states[1])
    return hidden + second.y, (first.state, second.state)


def _halves(subject: Subject) -> tuple[Tensor, Context, int]:
    return subject.inputs(ROWS, subject.length), subject.whole(ROWS, subject.length), subject.length // 2


def _facts(context: Context) -> dict[str, Tensor]:
    """The tensors of a context, by name."""
    facts = {f.name: getattr(context, f.name) for f in dataclasses.fields(context)}
    return {name: fact for name, fact in facts.items() if isinstance(fact, Tensor)}
