"""The grid of length and depth: what a record says of it, as a table and a picture."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from lcbench.errors import ConfigurationError
from lcbench.results.grid import grid_figure, grid_table, grids_of


def record() -> dict:
    found = {"task/headline": "error", "config/task.length": 128}
    cells = {"length_1k_depth_0": 0.5, "length_1k_depth_100": 0.0, "length_8x_depth_0": 0.25, "depth_50": 0.1}
    for n, (name, error) in enumerate({**cells, "noise_length_1M_depth_50": 1.0, "in_distribution": 0.0}.items()):
        scores = {"": error, "_low": max(0.0, error - 0.1), "_high": min(1.0, error + 0.1), "_n": 100 + n}
        found |= {f"scores/{name}/error{key}": value for key, value in scores.items()}
        found |= {f"scores/{name}/token_error{key}": 0.9 for key in scores}
    for depth, seconds in ((0, 1.0), (100, 3.0)):
        costs = {"seconds": seconds, "tokens_per_second": 10.0, "state_bytes": 5, "peak_memory_bytes": 100 + depth}
        found |= {f"streaming/length_1k_depth_{depth}/{name}": value for name, value in costs.items()}
    return found


def test_cells_are_those_with_a_length_and_a_depth() -> None:
    own, noise = grids_of(record())
    assert (own.base, noise.base) == ("", "noise")
    assert sorted(own.scores) == [(1000, 0), (1000, 100), (1024, 0)]
    assert sorted(noise.scores) == [(1_000_000, 50)]
    assert own.accuracy(1000, 0) == pytest.approx((0.5, 0.4, 0.6))
    assert own.accuracy(1024, 100) is None
    assert own.costs == {1000: {"seconds": 2.0, "tokens_per_second": 10.0, "state_bytes": 5, "peak_memory_bytes": 200}}


def test_the_table_says_accuracy_interval_and_count_of_every_cell() -> None:
    screen = io.StringIO()
    Console(file=screen, width=80).print(grid_table(grids_of(record())[0]))
    text = screen.getvalue()
    for words in ("50.0 %", "40.0 to 60.0", "n 100", "100.0 %", "75.0 %", "n 102", "2.00 s", "1,024"):
        assert words in text


def test_without_a_grid_there_is_nothing() -> None:
    assert grids_of({"task/headline": "error", "scores/in_distribution/error": 0.1}) == []


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_figure_is_a_picture(tmp_path, kind) -> None:
    path = tmp_path / f"grid.{kind}"
    grid_figure(grids_of(record())[0], path)
    content = path.read_bytes()
    assert content.startswith(b"<svg" if kind == "svg" else b"\x89PNG")
    assert kind == "png" or b"75 %" in content
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_without_the_packages_a_sentence_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'lcbench\[figures\]'"):
        grid_figure(grids_of(record())[0], tmp_path / "grid.svg")
