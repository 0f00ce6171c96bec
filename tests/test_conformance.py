"""Every mechanism in conf/attention, and every encoding in conf/position, is certified.

A new file in either folder is found here by itself. Every encoding is certified on full attention; every mechanism is
certified at each of its cases without an encoding, and at its first case with one encoding of each kind
(``pytest --every-composition`` takes all of them, which needs an hour). What a mechanism's oracle module says beyond
its definition: ``CASES``, the options at which it is certified (small segments, every variant; the defaults if
absent), and ``DEGENERATE``, the options at which it equals full attention with the same weights.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lcbench
from lcbench.attention.base import Attention
from lcbench.composition import compose
from lcbench.conformance import LAWS, certify, find_oracle, oracle_of
from lcbench.construction import construct
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape

CONF = Path(__file__).parents[1] / "conf"
ATTENTIONS = sorted(path.stem for path in (CONF / "attention").glob("*.yaml"))
POSITIONS = sorted(path.stem for path in (CONF / "position").glob("*.yaml"))

#: an encoding that adds to the input, one that rotates, one that adds a fixed bias, a learned one, one that reads
#: queries, and one that reads scores and keys
KINDS = ("absolute_sinusoidal", "rope", "alibi", "t5", "relative", "cope_rope")

#: options of encodings so small that 37 tokens go beyond what the encoding was made for
SMALL = {"context": 16}

#: the laws that an encoding can break in one mechanism and not in another
COMBINED = {
    "causality",
    "chunk_invariance",
    "chunk_invariance_of_the_state",
    "documents_equal_each_alone",
    "padded_rows_equal_unpadded",
    "state_resets_rows",
    "state_bytes",
    "read_both_ways_each_alone",
    "agrees_with_its_oracle",
    "agrees_with_its_oracle_both_ways",
    "gradients_reach_every_parameter",
}

Config = dict[str, dict[str, Any]]


def overrides(attention: str, position: str, options: dict[str, Any]) -> list[str]:
    known = yaml.safe_load((CONF / "position" / f"{position}.yaml").read_text())
    small = [f"position.{key}={value}" for key, value in SMALL.items() if key in known]
    chosen = [f"attention.{key}={value}" for key, value in options.items()]
    return [f"attention={attention}", f"position={position}", *small, *chosen]


def layer_of(config: Config, shape: LayerShape) -> Attention:
    torch.manual_seed(0)  # where a mechanism chooses, half precision tips a choice at some weights and not at others
    layer = construct(config["attention"], shape, construct(config["position"], shape))
    assert isinstance(layer, Attention)
    return layer


def without_target(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "_target_"}


def cases(attention: str) -> list[dict[str, Any]]:
    return getattr(find_oracle(attention), "CASES", [{}])


def compositions() -> list[Any]:
    chosen = []
    for attention in ATTENTIONS:
        for number, options in enumerate(cases(attention)):
            for position in POSITIONS:
                usual = attention == "full" or position == "none" or (number == 0 and position in KINDS)
                marks = [] if usual else [pytest.mark.every_composition]
                name = f"{attention}-{number}-{position}"
                chosen.append(pytest.param(attention, options, position, id=name, marks=marks))
    return chosen


def degenerate_pair(attention: str, position: str, options: dict[str, Any]) -> tuple[Attention, Attention]:
    """A mechanism where it should equal full attention, and full attention, with the same weights."""
    shape = LayerShape(d_model=16, n_heads=2)
    ours = layer_of(compose(overrides(attention, position, options)).config, shape)
    full = layer_of(compose(overrides("full", position, {})).config, shape)
    assert not full.load_state_dict(ours.state_dict(), strict=False).missing_keys
    return ours, full


@pytest.mark.parametrize(("attention", "options", "position"), compositions())
def test_every_composition_is_certified(attention: str, options: dict[str, Any], position: str) -> None:
    shape, refusal = LayerShape(d_model=16, n_heads=2), ""
    try:
        config = compose(overrides(attention, position, options)).config
        layer = layer_of(config, shape)
    except ConfigurationError as error:
        refusal = str(error)
    if refusal:
        assert re.fullmatch(r"[^\n]+\.", refusal), "a refusal is one sentence"
        pytest.skip(refusal)
    oracle, oracle_together = (
        oracle_of(
            attention,
            position,
            n_heads=shape.n_heads,
            attention_options=without_target(config["attention"]),
            position_options=without_target(config["position"]),
            together=together,
        )
        for together in (False, True)
    )
    special = getattr(find_oracle(attention), "DEGENERATE", None)
    everything = attention == "full" or position == "none"
    certificate = certify(
        lambda: layer,
        composition=f"attention={attention} position={position}",
        oracle=oracle,
        oracle_together=oracle_together,
        degenerate=None if special is None else lambda: degenerate_pair(attention, position, special),
        laws=tuple(law for law in LAWS if everything or law.__name__ in COMBINED),
    )
    assert certificate.passed, [(check.name, check.detail) for check in certificate.checks if check.passed is False]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_dropout_obeys_the_laws_too(attention: str) -> None:
    config = compose(overrides(attention, "none", cases(attention)[0])).config
    certificate = certify(lambda: layer_of(config, LayerShape(d_model=16, n_heads=2, dropout=0.2)))
    assert certificate.passed, [(check.name, check.detail) for check in certificate.checks if check.passed is False]


@pytest.mark.parametrize("position", POSITIONS)
def test_a_later_layer_shares_what_it_must(position: str) -> None:
    """A layer above the first, which adopts shared parameters, obeys the laws too."""
    config = compose(overrides("full", position, {})).config
    first, second = (construct(config["position"], LayerShape(16, 2, layer=layer)) for layer in (0, 1))
    second.share(first)
    layer = construct(config["attention"], LayerShape(16, 2, layer=1), second)
    certificate = certify(lambda: layer, laws=tuple(law for law in LAWS if law.__name__ in COMBINED))
    assert certificate.passed, [(check.name, check.detail) for check in certificate.checks if check.passed is False]


def test_a_users_own_class_is_certified_the_same_way() -> None:
    layer = lcbench.build_attention("full", d_model=16, n_heads=2, position={"name": "cope", "p_max": 8})

    class Mine(type(layer)):  # type: ignore[misc]
        """Somebody's attention, which forgets what it has read."""

        def forward(self, x, context, state=None):  # type: ignore[no-untyped-def]
            return super().forward(x, context, None)

    certificate = certify(lambda: Mine(layer.shape, layer.position))
    assert "state is used" in certificate.failed
    assert "causality" not in certificate.failed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_attention_is_certified_on_an_accelerator(position: str, dtype: torch.dtype) -> None:
    config = compose(overrides("full", position, {})).config
    certificate = certify(lambda: layer_of(config, LayerShape(d_model=64, n_heads=2)), device="cuda", dtype=dtype)
    assert certificate.passed, [(check.name, check.detail) for check in certificate.checks if check.passed is False]
