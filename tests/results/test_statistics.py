"""Intervals against published values and against simulation; records against crashes."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

from lcbench.errors import ConfigurationError
from lcbench.results import read
from lcbench.results.record import RunFolder, scores_of, write_text
from lcbench.results.statistics import normal, ratio, wilson


def test_wilson_published_values():
    # Newcombe 1998, table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_covers_about_95_percent():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.3):
        intervals = [wilson(int(events), 200) for events in rng.binomial(200, share, 2000)]
        hits = [low <= share <= high for low, high in intervals]
        assert 0.92 < np.mean(hits) < 0.98


def test_intervals_of_nothing_are_not_numbers():
    assert all(math.isnan(end) for end in (*wilson(0, 0), *normal(1.0, 1.0, 1)))


def test_normal_interval_of_a_mean():
    values = np.random.default_rng(0).normal(3, 2, 10_000)
    low, high = normal(values.sum(), (values**2).sum(), len(values))
    assert (high - low) / 2 == pytest.approx(1.96 * 2 / 100, rel=0.03)
    assert (high + low) / 2 == pytest.approx(values.mean())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_read_finds_runs_at_any_depth_and_refuses_what_is_none(tmp_path):
    for name in ("b/x-1", "a/y-2"):
        RunFolder(tmp_path / name).write_result({"status": "completed"})
    assert [record["folder"] for record in read([tmp_path, tmp_path / "b"])] == [
        str(tmp_path / "a/y-2"),
        str(tmp_path / "b/x-1"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="is no run"):
        read([tmp_path / "empty"])


def test_scores_are_the_keys_that_are_counted():
    record = {"scores/s/error": 0.5, "scores/s/error_low": 0.1, "scores/s/error_high": 0.9, "scores/s/error_n": 4}
    record |= {f"scores/s/error/distance_1{part}": 1 for part in ("", "_low", "_high", "_n")}
    assert [(score.metric, score.n) for score in scores_of(record)] == [("error", 4), ("error/distance_1", 1)]


def test_a_ratio_of_sums_has_an_interval_over_groups() -> None:
    """By simulation: groups of different sizes, and values that depend on each other within a group."""
    rng = np.random.default_rng(0)
    covered, values = 0, []
    for _ in range(2000):
        sizes = rng.integers(1, 50, 40)
        shared = rng.normal(2, 0.5, 40)
        sums = np.array([(s + rng.normal(0, 1, n)).sum() for s, n in zip(shared, sizes, strict=True)])
        value, low, high = ratio(sums, sizes.astype(float))
        values.append(value)
        covered += low <= 2 <= high
    assert np.mean(values) == pytest.approx(2, abs=0.01)
    assert 0.93 < covered / 2000 < 0.965
    assert ratio(np.array([3.0]), np.array([2.0]))[0] == 1.5
    assert math.isnan(ratio(np.array([3.0]), np.array([2.0]))[1])
    # every group the same: nothing to be unsure of
    assert ratio(np.array([2.0, 4.0]), np.array([1.0, 2.0])) == (2, 2, 2)
