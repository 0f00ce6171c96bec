"""How a literal definition of a mechanism and one of an encoding become the oracle of their composition."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lcbench.attention.full import Full
from lcbench.conformance import LAWS, certify, find_oracle, oracle_of, oracles
from lcbench.position.alibi import Alibi
from lcbench.position.base import LayerShape
from lcbench.position.relative import Relative

SHAPE = LayerShape(d_model=8, n_heads=2)
ORACLE = tuple(law for law in LAWS if law.__name__ == "agrees_with_its_oracle")


def forward(
    x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor, *, row: Any, n_heads: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Full attention, query by query, head by head."""
    q, k, v = (
        (x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]).unflatten(-1, (n_heads, -1)) for name in "qkv"
    )
    tokens = []
    for i in range(len(x)):
        heads = [row(i, q[:, h], k[:, h], v[:, h], h).softmax(0) @ v[: i + 1, h] for h in range(n_heads)]
        tokens.append(weights["output.weight"] @ torch.cat(heads) + weights["output.bias"])
    return torch.stack(tokens), {"state.k": k.transpose(0, 1), "state.positions": positions}


def alibi(i: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor, positions: Tensor, weights: Any, **facts: Any) -> Tensor:
    slope = 2 ** (-8 * (facts["head"] + 1) / facts["n_heads"])
    return k[: i + 1] @ q[i] / 2 - slope * (positions[i] - positions[: i + 1])


def relative(
    i: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor, positions: Tensor, weights: Any, *, context: int, **facts: Any
) -> Tensor:
    scores = []
    for j in range(i + 1):
        n = int(positions[i] - positions[j])
        e = weights["table"][n] if n < context else torch.zeros_like(q[i])
        scores.append(q[i] @ (k[j] + e) / 2)
    return torch.stack(scores)


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {
        "full": SimpleNamespace(forward=forward),
        "alibi": SimpleNamespace(row=alibi),
        "relative": SimpleNamespace(row=relative),
    }
    monkeypatch.setattr(oracles, "find_oracle", found.get)


def test_weights_options_and_heads_reach_the_definitions() -> None:
    for encoding, name, options in ((Alibi, "alibi", {}), (Relative, "relative", {"context": 9})):
        oracle = oracle_of("full", name, n_heads=2, attention_options={}, position_options=options)
        certificate = certify(lambda: Full(SHAPE, encoding(SHAPE, **options)), laws=ORACLE, oracle=oracle)  # noqa: B023
        assert certificate.passed, certificate.checks
        assert "state.k" in certificate.checks[0].detail
        assert certificate.checks[0].measured is not None
        assert 0 < certificate.checks[0].measured < 1e-12


def test_another_option_is_noticed() -> None:
    oracle = oracle_of("full", "relative", n_heads=2, attention_options={}, position_options={"context": 8})
    certificate = certify(lambda: Full(SHAPE, Relative(SHAPE, context=9)), laws=ORACLE, oracle=oracle)
    assert certificate.failed == ("agrees with its oracle",)


def test_a_composition_without_both_definitions_has_no_oracle() -> None:
    given = {"n_heads": 2, "attention_options": {}, "position_options": {}}
    assert oracle_of("full", "no_such_encoding", **given) is None  # type: ignore[arg-type]
    assert oracle_of("no_such_mechanism", "alibi", **given) is None  # type: ignore[arg-type]


def test_modules_come_from_the_checkout() -> None:
    found = find_oracle("decoder")
    assert isinstance(found, ModuleType)
    assert found.__file__ is not None
    assert found.__file__.endswith("tests/oracles/decoder.py")
    assert find_oracle("no_such_mechanism") is None
