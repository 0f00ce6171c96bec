"""A run's parts before it starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lcbench.composition import build, compose
from lcbench.engine import experiment
from lcbench.engine.run import folder_of
from lcbench.errors import ConfigurationError


def test_every_set_is_scored_at_every_length_and_none_twice() -> None:
    grid = [
        "task=passkey",
        "evaluation.sets=[in_distribution,length_2x_depth_0,length_8x_depth_0]",
        "evaluation.lengths=[500,1k]",
    ]
    assert build(compose(grid)).evaluation_sets() == [
        "in_distribution",
        "length_2x_depth_0",
        "length_8x_depth_0",
        "length_500",
        "length_500_depth_0",
        "length_1000",
        "length_1000_depth_0",
    ]


def test_a_state_larger_than_the_machine_is_refused_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "device_bytes", lambda device: 2**24)
    words = ["task=passkey", "position=rope", "evaluation.sets=[length_10k_depth_0]", "evaluation.streaming=true"]
    # two layers of keys and values of width 64, and a position, in float32
    per_token = 2 * (2 * 64 * 4 + 8)
    with pytest.raises(ConfigurationError) as caught:
        build(compose([*words, "evaluation.batch_size=8"]))
    fits = (2**24 - 8) // (9999 * per_token)
    assert "largest that fits is evaluation.batch_size=" + str(fits) in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"evaluation\.batch_size=1: .* has 999,999 tokens"):
        build(compose([*words[:2], words[3], "evaluation.sets=[length_1M_depth_0]", "evaluation.batch_size=1"]))
    build(compose([*words[:2], words[3], "evaluation.sets=[length_1M_depth_0]", "attention=infini"]))
    with pytest.raises(ConfigurationError, match=r"trainer\.batch_size=4000: training .* largest that fits"):
        build(compose(["trainer.batch_size=4000"]))


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "a/../../b"])
def test_an_experiments_name_does_not_leave_the_outputs(name: str, tmp_path: Path) -> None:
    # a config that came from somebody else may say anything
    given = dataclasses.replace(build(compose([f"outputs={tmp_path}/outputs"])), name=name)
    with pytest.raises(ConfigurationError, match=r"path out of outputs=.* closest name within it is experiment=\w+\."):
        folder_of(given)
    inside = dataclasses.replace(given, name="mine/of_mine")
    assert folder_of(inside).path.parent == tmp_path / "outputs" / "mine" / "of_mine"
