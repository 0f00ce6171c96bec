"""`lcbench cost` as a user types it, at lengths of a few tokens."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lcbench.cli import main
from lcbench.cost import growth
from lcbench.cost.board import Board
from lcbench.cost.command import folder_of
from lcbench.cost.figure import figure
from lcbench.cost.growth import Growth, Settings
from lcbench.cost.plan import plan
from lcbench.cost.points import Store, facts
from lcbench.cost.summary import QUANTITIES, Row, summarise
from lcbench.errors import ConfigurationError

SMALL = ("model.d_model=16", "model.n_heads=2", "trainer.threads=1")
TINY = ("attention=full,infini", "position=rope", "attention.segment=256", *SMALL)


@pytest.fixture
def cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[int, str]]:
    """Calls the command in an empty folder; returns the exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LCBENCH_OUTPUTS", raising=False)

    def call(*words: str) -> tuple[int, str]:
        code = main(["cost", *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all else at these lengths."""
    monkeypatch.setitem(sys.modules, "altair", None)


def kept(tmp_path: Path) -> dict[str, Any]:
    (file,) = tmp_path.glob("outputs/cost/*/cost.json")
    return json.loads(file.read_text())


def test_a_run_measures_fits_draws_and_keeps(cost, tmp_path) -> None:
    code, screen = cost(*TINY, "--lengths", "32,64,128", "--rounds=2", "--extrapolate", "1e9")
    assert code == 0
    for words in (
        "one layer of attention with its projections, d_model 16, 2 heads",
        "fitted to tokens",
        "cheaper than full attention from",
        "measured / predicted",
        "extrapolated to 1,000,000,000 tokens",
        "written: outputs/cost/infini-",
    ):
        assert words in screen.replace("\n", " ")
    record = kept(tmp_path)
    assert len(record["points"]) == 2 * 2 * 3
    for point in record["points"]:
        assert len(point["seconds"]) == 2
        assert point["operations"] > 0
        assert point["predicted_bytes"] > 0
        assert point["peak_bytes"] is None or point["peak_bytes"] >= 0
    states = {point["length"]: point["state_bytes"] for point in record["points"] if point["label"] == "full"}
    assert states[128] == 4 * states[32]
    folder = next(tmp_path.glob("outputs/cost/*"))
    assert (folder / "time.svg").read_bytes().startswith(b"<svg")
    assert (folder / "memory.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO((folder / "cost.csv").read_text())))
    assert len(rows) == 12
    assert all(float(row["of_full"]) == 1 for row in rows if row["composition"] == "full")
    billion = {(row["composition"], row["pass"]): row["extrapolated"][0] for row in record["growth"]}
    # linear and quadratic in the length
    assert 1e12 < billion["infini", "forward"]["operations"] < 1e14
    assert 1e19 < billion["full", "forward"]["operations"] < 1e21


def test_finished_points_are_kept_and_further_lengths_join_them(cost, tmp_path, undrawn) -> None:
    words = (*TINY, "--rounds", "1")
    assert cost(*words, "--lengths", "32")[0] == 0
    before = kept(tmp_path)["points"]
    assert cost(*words, "--lengths", "32,64")[0] == 0
    after = kept(tmp_path)["points"]
    assert [point for point in after if point["length"] == 32] == before
    assert len(after) == 2 * len(before)
    assert cost(*words, "--lengths", "32", "rerun=true")[0] == 0
    assert [p["seconds"] for p in kept(tmp_path)["points"]] != [p["seconds"] for p in before]


def test_points_of_another_machine_or_code_do_not_count(tmp_path) -> None:
    store = Store(tmp_path, {"code": "1", "machine/cores": 2})
    store.put([])
    assert not Store(tmp_path, {"code": "1", "machine/cores": 2}).forgotten
    assert "another cores" in Store(tmp_path, {"code": "1", "machine/cores": 4}).forgotten
    assert "another code" in Store(tmp_path, {"code": "2", "machine/cores": 2}).forgotten
    store.file.write_text("{")
    assert "cannot be read" in Store(tmp_path, {}).forgotten


def test_the_whole_network_and_csv_on_standard_output(tmp_path, monkeypatch, capsys, undrawn) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("model=lstm", "task.length=16", "--model", "--lengths", "16,32", "--rounds", "1", *SMALL[:1], SMALL[2])
    assert main(["cost", *words, "--csv", "-", "--json", "all.json"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["composition"] for row in rows} == {"lstm", "full (rope, fused)"}
    assert len(json.loads((tmp_path / "all.json").read_text())["growth"]) == 4


def grown(tmp_path: Path, *words: str, lengths: tuple[int, ...], limit: float = 60.0) -> tuple[list[Row], str]:
    """The rows of a measurement in this process, and what it said."""
    found = plan([*words, f"outputs={tmp_path}"], [], "layer")
    settings = Settings(rounds=1, clock="wall", limit=limit)
    store = Store(folder_of(found, settings), facts([subject.work for subject in found.subjects]))
    screen = io.StringIO()
    with Board(Console(file=screen, width=200)) as board:
        measured = Growth(found.subjects, settings, store, board)
        measured.run(lengths)
    return summarise(found, measured, []), screen.getvalue()


def test_it_stops_before_memory_would_run_out(tmp_path, monkeypatch) -> None:
    # room for a step at 64 tokens and not for one at a thousand times as many
    monkeypatch.setattr(growth, "available_memory_bytes", lambda device: 8 * 2**20)
    rows, screen = grown(tmp_path, "attention=full", "position=rope", *SMALL, lengths=(64, 64_000))
    assert [sorted(row.points) for row in rows] == [[64]] * 2
    assert all(row.end is not None and "of memory, and 8.0 MiB are left" in row.end[1] for row in rows)
    assert "full, forward: stopped before 64,000 tokens: it would take about" in screen


def test_it_stops_before_a_step_would_take_too_long(tmp_path) -> None:
    rows, _ = grown(tmp_path, "attention=full", "position=rope", *SMALL, lengths=(512, 300_000), limit=5.0)
    training = rows[1]
    assert training.end is not None
    assert training.end[0] == 300_000
    assert "longer than --seconds 5" in training.end[1]
    assert sorted(training.points) == [512]


def test_what_fails_costs_itself_only(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_failing.py").write_text(
        "from lcbench.attention.full import Full\n\n\n"
        "class Failing(Full):\n"
        "    def forward(self, x, context, state=None):\n"
        "        if x.shape[1] > 40:\n"
        "            raise RuntimeError('more than forty')\n"
        "        return super().forward(x, context, state)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows, screen = grown(tmp_path, "attention._target_=my_failing.Failing", "position=rope", *SMALL, lengths=(32, 64))
    assert [sorted(row.points) for row in rows] == [[32], [32], [32, 64], [32, 64]]
    assert "RuntimeError: more than forty (my_failing.py:7)" in screen


def test_ctrl_c_keeps_what_is_finished(tmp_path) -> None:
    words = ["cost", *TINY, "--rounds", "1", "--lengths", "32,64,64k", "--seconds", "1000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lcbench", *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list(tmp_path.glob("outputs/cost/*/cost.json")):
            timed = [point["length"] for point in kept(tmp_path)["points"] if point["seconds"]]
            if timed.count(64) == 4:
                break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    screen, _ = process.communicate(timeout=120)
    assert process.returncode == 130, screen
    assert "stopped by Ctrl-C; the same command continues" in screen
    assert "cheaper than full attention from" in screen
    assert "Traceback" not in screen
    timed = [point["length"] for point in kept(tmp_path)["points"] if point["seconds"]]
    assert timed.count(32) == timed.count(64) == 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--length", "1k"), "--length: cost has no such option; the closest is --lengths."),
        (("--lengths", "1x"), "'1x' is not a number of tokens"),
        (("--lengths", "0"), "0 is no length; the least is 1"),
        (("--lengths",), "--lengths needs a value, such as --lengths 1k,4k,16k,64k."),
        (("--rounds", "0"), "--rounds 0: must be a whole number above 0"),
        (("--seconds", "soon"), "--seconds soon: must be a number above 0"),
        (("--clock", "wal"), "--clock wal: no such clock; the closest is wall."),
        (("--rounds", "1", "--rounds", "2"), "--rounds stands there twice: 1 and 2; take one."),
        (("infini",), "infini: an override is key=value"),
        (("--memory", "--rounds", "2"), "--rounds: cost --memory takes overrides only"),
        (("--csv", "no/such/folder.csv"), "there is no folder no/such"),
        (("attention=infni",), "attention=infni: no such choice; the closest is infini."),
    ],
)
def test_a_mistake_is_one_sentence(cost, words, sentence) -> None:
    code, said = cost(*words)
    assert code == 2
    assert sentence in said
    assert said.count("\n") == 1


def test_memory_still_shows_footprints(cost) -> None:
    code, screen = cost("--memory", "attention=infini")
    assert code == 0
    assert "numbers carried" in screen


def test_without_the_packages_the_points_are_kept_all_the_same(cost, tmp_path, undrawn) -> None:
    code, screen = cost(*TINY, "--lengths", "32", "--rounds", "1")
    assert code == 0
    assert "pip install 'lcbench[figures]'" in screen
    assert len(kept(tmp_path)["points"]) == 4
    with pytest.raises(ConfigurationError, match="no figures without altair"):
        figure([], QUANTITIES[0], "", [])
