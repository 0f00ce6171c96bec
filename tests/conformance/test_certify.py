"""The suite can fail: every law is broken by a layer, and no other law complains without cause."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial

import pytest
import torch
from rich.console import Console
from torch import Tensor

from lcbench.attention.base import Attention, AttentionOutput, Context, State
from lcbench.attention.full import Full
from lcbench.conformance import LAWS, Certificate, certify, oracle_of
from lcbench.conformance.computing import evaluation_equals_training
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape, PositionEncoding
from tests.conformance import broken, layers

SHAPE = LayerShape(d_model=8, n_heads=2)
LENGTH = 17

CHUNKS = {
    "chunk invariance",
    "chunk invariance of gradients",
    "documents equal each alone",
    "padded rows equal unpadded",
    "state resets rows",
    "autocast",
}
FUTURE = CHUNKS | {"causality", "causality by gradient", "any length"}


def make(kind: type[Attention], dropout: float = 0.0) -> Attention:
    shape = LayerShape(SHAPE.d_model, SHAPE.n_heads, dropout=dropout)
    return kind(shape, PositionEncoding(shape))


def plain(x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor) -> Tensor:
    """The oracle of ``Plain``."""
    q, k, v = (x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"] for name in "qkv")
    rows = []
    for i in range(len(x)):
        scores = torch.stack([q[i] @ k[j] / 8**0.5 - 0.1 * (positions[i] - positions[j]) for j in range(i + 1)])
        rows.append(scores.softmax(0) @ v[: i + 1])
    return torch.stack(rows)


def linear(
    x: Tensor, weights: dict[str, Tensor], positions: Tensor, landmarks: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The oracle of ``Linear``, with its final state."""
    q, k, v = (x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"] for name in "qkv")
    q, k = (torch.where(a > 0, a + 1, a.exp()) for a in (q, k))
    rows = []
    for i in range(len(x)):
        shares = q[i] @ k[: i + 1].T
        rows.append(shares @ v[: i + 1] / (shares.sum() + 1e-6))
    return torch.stack(rows), {"state.s": k.T @ v, "state.z": k.sum(0)}


@pytest.mark.parametrize(
    ("kind", "oracle"),
    [(layers.Plain, plain), (layers.Linear, linear), (layers.TwoWay, None)],
    ids=["plain", "linear", "two_way"],
)
def test_a_sound_layer_is_certified(kind: type[Attention], oracle: object) -> None:
    certificate = certify(partial(make, kind), length=LENGTH, oracle=oracle, degenerate=lambda: (make(kind),) * 2)  # type: ignore[arg-type]
    assert certificate.passed, [check for check in certificate.checks if check.passed is False]
    skipped = {check.name for check in certificate.checks if check.passed is None}
    if kind is layers.TwoWay:
        assert {"causality", "chunk invariance", "state is used", "agrees with its oracle"} < skipped
        assert not {"batch invariance", "document isolation", "padding isolation", "bfloat16"} & skipped
    else:
        assert skipped == {"compiles", "read both ways each alone", "agrees with its oracle both ways"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_certified(dtype: torch.dtype) -> None:
    certificate = certify(partial(make, layers.Plain), length=LENGTH, dtype=dtype)
    assert certificate.passed, certificate.failed
    worst = max(check.measured for check in certificate.checks if check.name == "chunk invariance")
    assert 0 < worst < (1e-10 if dtype == torch.float64 else 0.2)


def test_dropout_is_certified() -> None:
    certificate = certify(partial(make, layers.Plain, dropout=0.2), length=LENGTH)
    assert certificate.passed, certificate.failed
    assert next(c for c in certificate.checks if c.name == "evaluation equals training").detail == "Dropout is on."


#: the laws that each broken layer breaks
BROKEN: dict[type[Attention], set[str]] = {
    broken.LeaksTheFuture: FUTURE,
    broken.LeaksInsideASegment: FUTURE,
    broken.LeaksByGradientAlone: {"causality by gradient", "chunk invariance of gradients", "padding isolation"},
    broken.AlignsTopLeft: CHUNKS,
    broken.LosesTheTokenBeforeABorder: CHUNKS,
    broken.ForgetsItsState: CHUNKS | {"chunk invariance of the state"},
    broken.IgnoresItsState: CHUNKS | {"state is used"},
    broken.ReturnsNoState: CHUNKS
    | {"chunk invariance of the state", "state detaches", "state selects rows", "state bytes"}
    | {"state keeps nothing else alive", "state is used"},
    broken.MutatesItsState: {
        "nothing changes in place",
        "state selects rows",
        "state resets rows",
        "chunk invariance of gradients",
    },
    broken.MutatesItsContext: CHUNKS - {"autocast"}
    | {"nothing changes in place", "chunk invariance of the state", "any length", "state selects rows"},
    broken.DetachesItsState: {"chunk invariance of gradients"},
    broken.NeverDetaches: {"state detaches"},
    broken.SelectsTheFirstRows: {"state selects rows"},
    broken.ResetsNothing: {"state resets rows"},
    broken.ResetsEverything: {"state resets rows"},
    broken.MiscountsItsBytes: {"state bytes"},
    broken.AccumulatesInHalfPrecision: {"state bytes"},
    broken.KeepsTheWholeChunkAlive: {"state keeps nothing else alive"},
    broken.MixesTheBatch: {
        "batch invariance",
        "causality",
        "causality by gradient",
        "document isolation",
        "padding isolation",
    }
    | {"documents equal each alone", "padded rows equal unpadded", "state selects rows", "state resets rows"},
    broken.IgnoresDocuments: {"document isolation", "documents equal each alone"},
    broken.CrossesDocumentsAtBorders: {"document isolation", "documents equal each alone"}
    | {"chunk invariance", "chunk invariance of gradients"},
    broken.SeesPadding: {"padding isolation", "padded rows equal unpadded"},
    broken.TwoWayThatReadsPadding: {"padding isolation", "padded rows equal unpadded"},
    broken.CountsPadding: {"padded rows equal unpadded"},
    broken.IsNaNWhereNothingIsVisible: {
        "padding isolation",
        "causality by gradient",
        "chunk invariance of gradients",
        "large inputs",
    }
    | {"determinism", "determinism in training"},
    broken.WantsTheSameFactsInEveryChunk: {"facts that say nothing"},
    broken.ReadsData: {"shapes need no data"},
    broken.DependsOnTheLength: CHUNKS | {"any length"},
    broken.IsNotDeterministic: {"determinism"},
    broken.DiffersInEvaluation: {"evaluation equals training"},
    broken.HasAnIdleParameter: {"gradients reach every parameter"},
    broken.IsNaNInBfloat16: {"bfloat16", "large inputs"},
    broken.FailsUnderAutocast: {"autocast"},
    broken.ForgetsToSubtractTheMaximum: {"large inputs", "padding isolation"},
    broken.TurnsInHalfPrecision: {"bfloat16"},
    broken.TurnsTooFast: {"far positions"},
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_layer_fails_exactly_the_laws_it_breaks(kind: type[Attention]) -> None:
    certificate = certify(partial(make, kind), length=LENGTH)
    assert set(certificate.failed) == BROKEN[kind]
    assert not certificate.passed


@pytest.mark.parametrize(
    ("kind", "failed"),
    [(broken.DropsWithoutTheSeed, "determinism in training"), (broken.DropsNothing, "evaluation equals training")],
)
def test_broken_dropout_fails(kind: type[Attention], failed: str) -> None:
    assert certify(partial(make, kind, dropout=0.1), length=LENGTH).failed == (failed,)


def test_a_layer_may_say_that_its_evaluation_differs() -> None:
    class Says(broken.DiffersInEvaluation):
        evaluation_differs = True

    certificate = certify(partial(make, Says), length=LENGTH, laws=(evaluation_equals_training,))
    assert certificate.passed
    assert "evaluation with gradients" in certificate.checks[0].detail


def test_an_oracle_sees_a_wrong_gradient_and_a_wrong_output() -> None:
    failed = ("agrees with its oracle",)
    assert certify(partial(make, broken.HasAWrongGradient), length=LENGTH).passed
    assert certify(partial(make, broken.HasAWrongGradient), length=LENGTH, oracle=plain).failed == failed
    assert certify(partial(make, layers.Plain), length=LENGTH, oracle=lambda *a: 1.001 * plain(*a)).failed == failed


class CrossesDocuments(Full):
    """Reading both ways, it forgets documents and padding."""

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> AttentionOutput:
        if context.together:
            context = dataclasses.replace(context, documents=None, padding=None)
        return super().forward(x, context, state)


def test_reading_both_ways_is_looked_at() -> None:
    assert "read both ways each alone" not in certify(partial(make, Full), length=LENGTH).failed
    assert certify(partial(make, CrossesDocuments), length=LENGTH).failed == ("read both ways each alone",)


def test_an_oracle_sees_a_wrong_output_of_reading_both_ways() -> None:
    none = {"attention_options": {}, "position_options": {}}
    oracle = oracle_of("full", "none", n_heads=SHAPE.n_heads, together=True, **none)  # type: ignore[arg-type]
    assert oracle is not None
    assert certify(partial(make, Full), length=LENGTH, oracle_together=oracle).passed
    wrong = certify(partial(make, Full), length=LENGTH, oracle_together=lambda *a: 1.001 * oracle(*a))  # type: ignore[operator]
    assert wrong.failed == ("agrees with its oracle both ways",)


def test_an_oracle_sees_a_wrong_state() -> None:
    def wrong(*arguments: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y, state = linear(*arguments)  # type: ignore[arg-type]
        return y, state | {"state.z": state["state.z"] + 1}

    certificate = certify(partial(make, layers.Linear), length=LENGTH, oracle=wrong)
    assert certificate.failed == ("agrees with its oracle",)


def test_a_degenerate_case_that_is_none_fails() -> None:
    def pair() -> tuple[Attention, Attention]:
        ours, other = make(layers.Plain), make(layers.Linear)
        other.load_state_dict(ours.state_dict())
        return ours, other

    assert certify(partial(make, layers.Plain), length=LENGTH, degenerate=pair).failed == ("degenerates to another",)


def test_a_compiled_layer_is_compared() -> None:
    laws = tuple(law for law in LAWS if law.__name__ == "compiles")
    sound, wrong = (
        certify(partial(make, kind), length=16, compile="eager", laws=laws)
        for kind in (layers.Plain, broken.DiffersWhenCompiled)
    )
    assert sound.passed
    assert sound.checks[0].passed
    assert wrong.failed == ("compiles",)


def test_every_law_can_fail() -> None:
    elsewhere = {"determinism in training", "agrees with its oracle", "degenerates to another", "compiles"}
    elsewhere |= {"read both ways each alone", "agrees with its oracle both ways"}
    assert {law.__name__.replace("_", " ") for law in LAWS} == elsewhere.union(*BROKEN.values())


def test_the_layer_and_the_random_state_of_the_caller_are_left_alone() -> None:
    layer = make(layers.Plain, dropout=0.5)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    certify(lambda: layer, length=16)
    assert torch.equal(torch.rand(4), expected)
    assert layer.training
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_same_seed_measures_the_same() -> None:
    def measured(seed: int) -> list[float | None]:
        return [check.measured for check in certify(partial(make, layers.Plain), length=16, seed=seed).checks]

    assert measured(0) == measured(0)
    assert measured(0) != measured(1)


def test_a_length_that_says_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="length=4 is too short"):
        certify(partial(make, layers.Plain), length=4)


def test_long_inputs_are_probed_in_places() -> None:
    laws = tuple(law for law in LAWS if law.__name__ in ("causality", "chunk_invariance"))
    certificate = certify(partial(make, layers.Plain), length=131, laws=laws)
    assert certificate.passed
    assert certificate.checks[0].detail.startswith("64 tokens changed")
    assert certify(partial(make, broken.LeaksInsideASegment), length=131, laws=laws).failed == (
        "causality",
        "chunk invariance",
    )


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return certify(partial(make, broken.IsNaNWhereNothingIsVisible), composition="attention=mine", length=LENGTH)


def test_a_certificate_becomes_json(certificate: Certificate) -> None:
    plain = json.loads(json.dumps(certificate.as_dict(), allow_nan=False))
    assert plain["composition"] == "attention=mine"
    assert plain["passed"] is False
    assert plain["versions"]["torch"] == torch.__version__
    by_name = {check["name"]: check for check in plain["checks"]}
    assert by_name["causality by gradient"]["measured"] == "inf"
    assert by_name["compiles"]["passed"] is None
    assert by_name["batch invariance"]["tolerance"] == pytest.approx(5e-5)
    assert all(check["law"].endswith(".") for check in plain["checks"])


def test_a_certificate_is_readable(certificate: Certificate) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(certificate.render())
    text = capture.get()
    assert text.startswith("attention=mine\n")
    assert "float32, 17 tokens, seed 0" in text
    assert f"torch {torch.__version__}" in text
    lines = text.splitlines()
    assert max(map(len, lines[: len(LAWS) + 5])) <= 80
    row = next(line for line in lines if line.startswith("batch invariance"))
    assert row.split()[2:5] == ["held", "0", "5e-05"]
    assert "padding isolation: What padding contains" in text
    assert "The output at a padding token is not finite." in " ".join(text.split())
    assert certificate.verdict in text
    assert certificate.verdict.startswith("NOT certified: ")


def test_a_violation_that_is_not_a_number_is_seen() -> None:
    from lcbench.conformance.subject import difference

    one = torch.ones(3)
    assert difference(one, one * math.nan) == math.inf
    assert difference(one * math.inf, one) == math.inf
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == math.inf
    assert difference(one, one + 1e-9) < 1e-6
