"""A run's parts before it starts."""

from __future__ import annotations

from lcbench.composition import build, compose


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
