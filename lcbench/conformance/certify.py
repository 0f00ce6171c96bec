"""Certify a layer: run every law on it.

The laws are functions of three modules, one law each, whose docstring is the law: ``reading`` (what an output may
depend on), ``carrying`` (the state), ``computing`` (oracles, precision, gradients).
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable

import torch

from lcbench.attention.base import Attention
from lcbench.conformance import carrying, computing, reading
from lcbench.conformance.certificate import Certificate, Check
from lcbench.conformance.subject import Finding, NotApplicableError, Oracle, Subject, ViolatedError
from lcbench.errors import ConfigurationError

Law = Callable[[Subject], Finding]

#: every law, in the order in which a certificate lists them
LAWS: tuple[Law, ...] = (
    reading.causality,
    reading.causality_by_gradient,
    reading.chunk_invariance,
    reading.chunk_invariance_of_the_state,
    reading.chunk_invariance_of_gradients,
    reading.any_length,
    reading.facts_that_say_nothing,
    reading.batch_invariance,
    reading.document_isolation,
    reading.documents_equal_each_alone,
    reading.padding_isolation,
    reading.padded_rows_equal_unpadded,
    reading.read_both_ways_each_alone,
    carrying.state_detaches,
    carrying.state_selects_rows,
    carrying.state_resets_rows,
    carrying.nothing_changes_in_place,
    carrying.state_bytes,
    carrying.state_keeps_nothing_else_alive,
    carrying.state_is_used,
    computing.agrees_with_its_oracle,
    computing.agrees_with_its_oracle_both_ways,
    computing.degenerates_to_another,
    computing.gradients_reach_every_parameter,
    computing.evaluation_equals_training,
    computing.determinism,
    computing.determinism_in_training,
    computing.bfloat16,
    computing.autocast,
    computing.large_inputs,
    computing.far_positions,
    computing.shapes_need_no_data,
    computing.compiles,
)

#: the shortest input in which every situation fits
SHORTEST = 16


def certify(
    make: Callable[[], Attention],
    *,
    composition: str = "",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    length: int = 37,
    seed: int = 0,
    oracle: Oracle | None = None,
    oracle_together: Oracle | None = None,
    degenerate: Callable[[], tuple[Attention, Attention]] | None = None,
    compile: bool | str = False,
    laws: tuple[Law, ...] = LAWS,
) -> Certificate:
    """Run every law on the layer that ``make`` makes.

    Args:
        make: makes the layer; called several times, its result is copied and never changed.
        composition: what to call it, e.g. ``attention=full position=cope``; its classes unless given.
        device: where to run.
        dtype: of weights and activations, wherever a law does not choose its own.
        length: tokens in most inputs. It should span several of the mechanism's segments, and divide by none.
        seed: of weights and inputs; the caller's random state is left alone.
        oracle: the literal definition: see ``Oracle``.
        oracle_together: the same of reading both ways, for a mechanism that can.
        degenerate: makes the mechanism with the options at which it must equal another layer, and that layer, with
            the same weights.
        compile: also compare with torch.compile; a string names another backend than inductor.
        laws: the laws to run.

    Raises:
        ConfigurationError: what ``make`` raises, and for a ``length`` too short to say anything.
    """
    if length < SHORTEST:
        raise ConfigurationError(
            f"length={length} is too short for the situations to certify; use {SHORTEST} or more."
        )
    device, start = torch.device(device), time.perf_counter()
    backend = "inductor" if compile is True else compile or None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        subject = Subject(make, device, dtype, length, seed, oracle, oracle_together, degenerate, backend)
        name = composition or f"{type(subject.layer).__name__} position={type(subject.layer.position).__name__}"
        checks = tuple(check(law, subject) for law in laws)
    return Certificate(
        composition=name,
        checks=checks,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        length=length,
        seed=seed,
        seconds=time.perf_counter() - start,
        machine=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    )


def check(law: Law, subject: Subject) -> Check:
    """What ``law`` says of ``subject``; an error inside the layer is a violation."""
    name, sentence = law.__name__.replace("_", " "), " ".join((law.__doc__ or "").split())
    try:
        finding = law(subject)
    except NotApplicableError as reason:
        return Check(name, sentence, None, str(reason))
    except ViolatedError as violation:
        return Check(name, sentence, False, str(violation))
    except Exception as error:
        message = (str(error).strip() or "no message").splitlines()[0]
        return Check(name, sentence, False, f"{type(error).__name__}: {message}")
    measured, tolerance = finding.measured, finding.tolerance
    holds = measured is None or tolerance is None or (not math.isnan(measured) and measured <= tolerance)
    return Check(name, sentence, holds, finding.detail, measured, tolerance)
