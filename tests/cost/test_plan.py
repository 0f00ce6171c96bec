"""Which compositions a command line asks for."""

from __future__ import annotations

import pytest

from lcbench.cost.plan import Plan, plan
from lcbench.cost.step import Scope
from lcbench.errors import ConfigurationError


def planned(*words: str, scope: Scope = "layer") -> Plan:
    return plan(words, [], scope)


def labels(found: Plan) -> list[str]:
    return [subject.label for subject in found.subjects]


def test_full_attention_is_added_once_and_found_where_it_is_listed() -> None:
    assert labels(planned("attention=sliding_window,infini")) == ["sliding_window", "infini", "full (rope, fused)"]
    listed = planned("attention=infini,full", "position=rope")
    assert labels(listed) == ["infini", "full"]
    infini, full = listed.subjects
    assert infini.reference == full.reference == full.work.identity
    assert listed.reference_of(infini) is full


def test_full_attention_has_the_shape_of_what_it_is_compared_with() -> None:
    found = planned("attention=infini", "model.d_model=32,64", "model.n_heads=2")
    assert len(found.references) == 2
    for subject in found.subjects:
        assert found.reference_of(subject).work.shape == subject.work.shape


def test_options_go_to_those_that_have_them() -> None:
    found = planned("attention=full,infini,transformer_xl", "position=rope", "attention.segment=16,32")
    assert labels(found) == [
        "full",
        "infini attention.segment=16",
        "infini attention.segment=32",
        "transformer_xl attention.segment=16",
        "transformer_xl attention.segment=32",
    ]


def test_without_a_position_each_mechanism_gets_one_that_it_takes() -> None:
    (subject, _) = planned("attention=memorizing").subjects
    assert subject.work.position is not None
    assert subject.work.position["_target_"] == "lcbench.position.rope.Rope"


def test_what_cannot_be_costs_itself_only() -> None:
    found = planned("attention=linear,full", "position=cope")
    assert labels(found) == ["full", "full (rope, fused)"]
    ((label, reason),) = found.refused
    assert label == "linear"
    assert "attention=linear has none" in reason
    with pytest.raises(ConfigurationError, match="attention=linear has none"):
        planned("attention=linear", "position=cope")


def test_a_network_without_attention_is_measured_whole() -> None:
    with pytest.raises(ConfigurationError, match="add --model"):
        planned("model=lstm")
    lstm, full = planned("model=lstm", "model.d_model=24", scope="model").subjects
    assert lstm.label == "lstm"
    assert full.work.model["d_model"] == 24
    assert full.work.model["_target_"].endswith(".Decoder")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("attention=ful",), "attention=ful: no such choice; the closest is full."),
        (("attention=infini,linear", "attention.segmnt=4"), "none of infini, linear has it; the closest"),
        (("atention=full",), "no such key; the closest is attention."),
        (("attention.segment=4", "attention=infini", "model.d_model=10"), "does not divide"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence.replace(".", r"\.")):
        planned(*words)


def test_a_users_own_mechanism_is_measured_too(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_mechanisms.py").write_text(
        "from lcbench.attention.full import Full\n\n\nclass Mine(Full):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert labels(planned("attention._target_=my_mechanisms.Mine", "position=rope")) == [
        "my_mechanisms.Mine",
        "full (rope, fused)",
    ]
