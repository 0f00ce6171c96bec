"""Columns are exactly the keys that tell configurations apart."""

from __future__ import annotations

import pytest

from lcbench.results.keys import columns, is_value, shown, value_of
from tests.results.synthetic import COPE, ROPE, config_with, flat

LSTM = {"_target_": "lcbench.model.lstm.LSTM", "d_model": 64, "n_layers": 2}


def columns_of(*changes: dict) -> list[str]:
    return columns([flat(config_with(**change)) for change in changes])


def test_a_choice_stands_for_its_options():
    # p_max and context belong to cope alone, base to rope
    assert columns_of({}, {"position": ROPE}) == ["position._target_"]


def test_an_option_that_differs_within_a_choice_is_a_column():
    assert columns_of({}, {"position__p_max": 32}, {"position": ROPE}) == ["position._target_", "position.p_max"]


def test_what_follows_from_another_key_is_no_column():
    longer = {"task__length": 128, "position__context": 128}
    assert columns_of({}, longer) == ["task.length"]
    assert columns_of({}, longer, {"position": ROPE}) == ["task.length", "position._target_"]


def test_what_could_follow_but_was_set_is_a_column():
    assert columns_of({}, {"task__length": 128}) == ["task.length"]
    assert columns_of({}, {"task__length": 128, "position__context": 256}) == ["task.length", "position.context"]
    assert columns_of({}, {"position__context": 256}) == ["position.context"]


def test_equal_numbers_that_do_not_follow_are_both_columns():
    wide = {"task__length": 128, "position__context": 128, "model__d_model": 128}
    assert columns_of({}, wide) == ["task.length", "model.d_model"]


def test_a_group_that_only_one_model_has_is_explained_by_the_model():
    config = flat(config_with(model=LSTM))
    without = {key: value for key, value in config.items() if not key.startswith(("attention.", "position."))}
    assert columns([flat(config_with()), without]) == ["model._target_"]


def test_an_option_that_a_later_version_added_is_a_column():
    newer = {**COPE, "shared": True}
    assert columns_of({}, {"position": newer}) == ["position.shared"]


def test_seed_and_what_is_not_computed_are_no_columns():
    csv = {"_target_": "lcbench.logger.csv.CSV"}
    other = {"seed": 1, "outputs": "there", "tags": ["a"], "logger": csv, "trainer__progress": False, "rerun": True}
    assert columns_of({}, other) == []


def test_lists_are_compared_by_value():
    assert columns_of({}, {"optimizer__betas": [0.9, 0.999]}) == []
    assert columns_of({}, {"optimizer__betas": [0.9, 0.95]}) == ["optimizer.betas"]


def test_columns_stand_in_the_order_of_a_run():
    other = {"optimizer__lr": 0.1, "model__d_model": 32, "task__p_ignore": 0.1, "position": ROPE}
    assert columns_of({}, other) == ["task.p_ignore", "model.d_model", "position._target_", "optimizer.lr"]


def test_a_users_own_class_is_named_in_full():
    assert value_of({"position._target_": "mine.Encoding"}, "position._target_") == "mine.Encoding"
    assert value_of({"position._target_": "lcbench.position.rope.Rope"}, "position._target_") == "rope"


@pytest.mark.parametrize(
    ("value", "text"), [(0.001, "1e-3"), (64, "64"), (True, "true"), (None, "null"), ("rope", "rope"), (1.0, "1")]
)
def test_values_are_recognised_as_typed(value, text):
    assert is_value(value, text)
    assert not is_value(value, "other")


def test_values_are_shown_as_they_are_typed():
    assert [shown(value) for value in (None, True, 0.0001, 64, "rope")] == ["null", "true", "0.0001", "64", "rope"]
    assert not is_value(True, "1")
