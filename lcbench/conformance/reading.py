"""Laws of what an output may depend on: the past, the document, the row, and nothing else."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lcbench.attention.base import Context
from lcbench.conformance.situations import valid
from lcbench.conformance.subject import (
    ROWS,
    Finding,
    Subject,
    ViolatedError,
    difference,
    differentiate,
    feed,
    piece,
    state_after,
    state_difference,
)


@torch.no_grad()
def causality(subject: Subject) -> Finding:
    """Changing token t leaves every output before t unchanged."""
    subject.require_causal()
    tokens, worst = torch.tensor(subject.probed, device=subject.device), 0.0
    for context in subject.situations.values():
        x, many = _one_row_for_each(tokens, subject, context)
        changed = x.clone()
        changed[torch.arange(len(tokens)), tokens] = 10 * x.flip(1)[:, 0]
        times = torch.arange(subject.length, device=subject.device)
        before = (times < tokens[:, None]) & valid(many)  # [rows, time]
        for cuts in ([], [subject.length // 3]):
            expected, actual = (feed(subject.layer, inputs, many, cuts)[0] for inputs in (x, changed))
            worst = max(worst, difference(actual[before], expected[before]))
    detail = f"{len(tokens)} tokens changed, whole and after a chunk; {_situations(subject)}"
    return Finding(detail, worst, subject.tolerance())


def causality_by_gradient(subject: Subject) -> Finding:
    """The gradient of output i with respect to every later token is exactly zero."""
    subject.require_causal()
    tokens, worst = torch.tensor(subject.probed, device=subject.device) - 1, 0.0
    for name in ("whole", "packed and padded", "jumping"):
        x, many = _one_row_for_each(tokens, subject, subject.situations[name])
        times = torch.arange(subject.length, device=subject.device)
        later = times > tokens[:, None]  # [rows, time]
        for cuts in ([], [subject.length // 3]):
            x = x.detach().requires_grad_()
            y, _ = feed(subject.layer, x, many, cuts)
            output = y[torch.arange(len(tokens)), tokens]  # [rows, d_model]
            (gradient,) = torch.autograd.grad(output[valid(many).gather(1, tokens[:, None])[:, 0]].sum(), x)
            worst = max(worst, gradient[later].abs().nan_to_num(nan=torch.inf).max().item())
    return Finding(f"{len(tokens)} outputs, whole and after a chunk", worst, 0.0)


@torch.no_grad()
def chunk_invariance(subject: Subject) -> Finding:
    """A sequence fed whole, or cut into any chunks, gives the same outputs."""
    subject.require_causal()
    worst, x = 0.0, subject.inputs(ROWS, subject.length)
    for context in subject.situations.values():
        keep = valid(context)
        expected = feed(subject.layer, x, context)[0][keep]
        for cuts in subject.cuttings.values():
            worst = max(worst, difference(feed(subject.layer, x, context, cuts)[0][keep], expected))
    return Finding(f"{_cuts(subject)}; {_situations(subject)}", worst, subject.tolerance())


@torch.no_grad()
def chunk_invariance_of_the_state(subject: Subject) -> Finding:
    """A sequence fed whole, or cut into any chunks, ends in the same state."""
    subject.require_causal()
    worst, x = 0.0, subject.inputs(ROWS, subject.length)
    for context in subject.situations.values():
        expected = state_after(subject.layer, x, context)
        for cuts in subject.cuttings.values():
            worst = max(worst, state_difference(state_after(subject.layer, x, context, cuts), expected))
    return Finding(f"{_cuts(subject)}; {_situations(subject)}", worst, subject.tolerance())


def chunk_invariance_of_gradients(subject: Subject) -> Finding:
    """A sequence fed whole, or cut into any chunks, gives the same gradients when nothing is detached."""
    subject.require_causal()
    worst, x = 0.0, subject.inputs(ROWS, subject.length)
    for name in ("whole", "packed and padded"):
        context = subject.situations[name]
        expected = differentiate(subject.layer, x, context)[1]
        for cuts in subject.cuttings.values():
            worst = max(worst, difference(differentiate(subject.layer, x, context, cuts)[1], expected))
    return Finding(f"{len(subject.cuttings)} ways to cut; input and parameters", worst, subject.tolerance(10))


@torch.no_grad()
def any_length(subject: Subject) -> Finding:
    """Inputs of any length are read, and a causal output does not depend on how many tokens follow."""
    longest = 2 * subject.length + 1
    x, context = subject.inputs(2, longest), dataclasses.replace(subject.whole(2, longest), landmarks=None)
    expected, worst = feed(subject.layer, x, context)[0], 0.0
    lengths = sorted({1, 2, 3, 8, subject.length // 2, subject.length, longest})
    for length in lengths:
        y = feed(subject.layer, x[:, :length], piece(context, 0, length))[0]
        if y.shape != x[:, :length].shape or y.dtype != x.dtype:
            raise ViolatedError(f"{list(x[:, :length].shape)} {x.dtype} became {list(y.shape)} {y.dtype}.")
        if not bool(y.isfinite().all()):
            raise ViolatedError(f"An output of {length} tokens is not finite.")
        if subject.causal:
            worst = max(worst, difference(y, expected[:, :length]))
    return Finding(f"lengths {', '.join(map(str, lengths))}", worst, subject.tolerance())


@torch.no_grad()
def facts_that_say_nothing(subject: Subject) -> Finding:
    """Facts that say nothing (one document, no padding, no landmark) change nothing, also when they come late or end
    early; nor does declaring consecutive positions as jumping."""
    x, context = subject.inputs(ROWS, subject.length), subject.whole(ROWS, subject.length)
    bare = dataclasses.replace(context, landmarks=None)
    zeros, no = torch.zeros_like(context.positions), torch.zeros_like(context.positions, dtype=torch.bool)
    worst, cut = 0.0, subject.length // 2
    expected, in_chunks = (feed(subject.layer, x, bare, cuts)[0] for cuts in ([], [cut] if subject.causal else []))
    for facts in ({"documents": zeros}, {"padding": no}, {"landmarks": no}, {"consecutive": False}):
        told = dataclasses.replace(bare, **facts)  # type: ignore[arg-type]
        worst = max(worst, difference(feed(subject.layer, x, told)[0], expected))
        for first, second in ((told, bare), (bare, told)) if subject.causal else ():
            early, state = feed(subject.layer, x[:, :cut], piece(first, 0, cut))
            late, _ = feed(subject.layer, x[:, cut:], piece(second, cut, subject.length), state=state)
            worst = max(worst, difference(torch.cat([early, late], 1), in_chunks))
    return Finding("documents, padding, landmarks, consecutive", worst, subject.tolerance())


@torch.no_grad()
def batch_invariance(subject: Subject) -> Finding:
    """A row gives the same outputs alone, in a batch, and anywhere in it."""
    worst, x = 0.0, subject.inputs(ROWS, subject.length)
    order = torch.tensor([2, 0, 1, 0], device=subject.device)
    for context in subject.situations.values():
        keep = valid(context)
        expected = feed(subject.layer, x, context)[0]
        shuffled = feed(subject.layer, x[order], context.map(lambda tensor: tensor[order]))[0]
        worst = max(worst, difference(shuffled[keep[order]], expected[order][keep[order]]))
        for row in range(ROWS):
            if bool(keep[row].any()):
                alone = feed(subject.layer, x[[row]], _row(context, row))[0]
                worst = max(worst, difference(alone[0, keep[row]], expected[row, keep[row]]))
    return Finding(f"alone, permuted, repeated; {_situations(subject)}", worst, subject.tolerance())


@torch.no_grad()
def document_isolation(subject: Subject) -> Finding:
    """Changing one document leaves the outputs of all others in its row unchanged."""
    worst, looked_at = 0.0, 0
    for name in ("packed", "packed and padded"):
        context = subject.situations[name]
        assert context.documents is not None
        x = subject.inputs(ROWS, subject.length)
        for row in range(ROWS):
            documents, keep = context.documents[row], valid(context)[row]
            numbers = documents.unique()
            inside = documents == numbers[:, None]  # [documents, time]
            before = x[row].expand(len(numbers), -1, -1)
            after = torch.where(inside[:, :, None], 10 * before.flip(1), before)
            rows = torch.full_like(numbers, row)
            repeated = context.map(lambda tensor, rows=rows: tensor[rows])  # type: ignore[misc]
            looked_at += len(numbers)
            for cuts in subject.chunkings.values():
                expected, actual = (feed(subject.layer, inputs, repeated, cuts)[0] for inputs in (before, after))
                others = ~inside & keep
                worst = max(worst, difference(actual[others], expected[others]))
    return Finding(f"{looked_at} documents changed; {_cuts(subject)}", worst, subject.tolerance())


@torch.no_grad()
def documents_equal_each_alone(subject: Subject) -> Finding:
    """A document packed behind others gives the same outputs as alone, wherever chunks are cut."""
    context, x = subject.situations["packed"], subject.inputs(ROWS, subject.length)
    assert context.documents is not None
    packed = {name: feed(subject.layer, x, context, cuts)[0] for name, cuts in subject.chunkings.items()}
    worst = 0.0
    for row in range(ROWS):
        for number in context.documents[row].unique():
            times = (context.documents[row] == number).nonzero()[:, 0]
            alone = feed(subject.layer, x[row, times][None], subject.whole(1, len(times)))[0]
            worst = max(worst, *(difference(y[row, times], alone[0]) for y in packed.values()))
    return Finding(f"documents of 1 token and more; {_cuts(subject)}", worst, subject.tolerance())


def padding_isolation(subject: Subject) -> Finding:
    """What padding contains changes no valid output and gets no gradient from one; its own outputs are finite."""
    worst, x = 0.0, subject.inputs(ROWS, subject.length)
    for name in ("padded", "ragged", "packed and padded"):
        context = subject.situations[name]
        keep = valid(context)
        changed = torch.where(keep[:, :, None], x, 10 * x.flip(1))
        for cuts in subject.chunkings.values():
            expected, _ = differentiate(subject.layer, x, context, cuts)
            actual, gradients = differentiate(subject.layer, changed, context, cuts)
            if not bool(actual.isfinite().all()):
                raise ViolatedError("The output at a padding token is not finite.")
            if gradients[0][~keep].any():
                raise ViolatedError(f"The input of a padding token gets a gradient ({name}).")
            worst = max(worst, difference(actual[keep], expected[keep]))
    return Finding(f"left, right, anywhere, all; {_cuts(subject)}", worst, subject.tolerance())


@torch.no_grad()
def padded_rows_equal_unpadded(subject: Subject) -> Finding:
    """A row with padding gives the outputs it gives without, wherever the padding lies and chunks are cut."""
    worst, x = 0.0, subject.inputs(ROWS, subject.length)
    for name in ("padded", "ragged"):
        context = subject.situations[name]
        keep = valid(context)
        outputs = [feed(subject.layer, x, context, cuts)[0] for cuts in subject.chunkings.values()]
        for row in range(ROWS):
            if bool(keep[row].any()):
                tokens = x[row, keep[row]][None]
                alone = feed(subject.layer, tokens, subject.whole(1, tokens.shape[1]))[0]
                worst = max(worst, *(difference(y[row, keep[row]], alone[0]) for y in outputs))
    return Finding(f"left, right, anywhere; {_cuts(subject)}", worst, subject.tolerance())


@torch.no_grad()
def read_both_ways_each_alone(subject: Subject) -> Finding:
    """Where its tokens are read both ways, a document gives the outputs it gives alone, packed or padded."""
    subject.require_together()
    worst, x = 0.0, subject.inputs(ROWS, subject.length)
    for name in ("packed", "packed and padded", "padded", "ragged"):
        context = dataclasses.replace(subject.situations[name], together=True)
        y, keep = subject.layer(x, context).y, valid(context)
        documents = torch.zeros_like(context.positions) if context.documents is None else context.documents
        for row in range(ROWS):
            for number in documents[row].unique():
                tokens = ((documents[row] == number) & keep[row]).nonzero()[:, 0]
                if len(tokens):
                    whole = dataclasses.replace(subject.whole(1, len(tokens)), together=True)
                    alone = subject.layer(x[row, tokens][None], whole).y
                    worst = max(worst, difference(y[row, tokens], alone[0]))
    return Finding("packed, padded, both, padding anywhere", worst, subject.tolerance())


def _one_row_for_each(tokens: Tensor, subject: Subject, context: Context) -> tuple[Tensor, Context]:
    """Inputs ``[tokens, time, d_model]`` and their context: the three rows of ``context`` by turns."""
    rows = torch.arange(len(tokens), device=subject.device) % ROWS
    return subject.inputs(ROWS, subject.length)[rows], context.map(lambda tensor: tensor[rows])


def _row(context: Context, row: int) -> Context:
    return context.map(lambda tensor: tensor[row : row + 1])


def _situations(subject: Subject) -> str:
    return f"{len(subject.situations)} situations"


def _cuts(subject: Subject) -> str:
    return f"whole, {len(subject.cuttings)} ways to cut" if subject.causal else "whole"
