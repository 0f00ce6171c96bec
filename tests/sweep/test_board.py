"""What a person sees of a sweep while it works."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lcbench.results.record import CURVES, RunFolder
from lcbench.sweep.board import Board, clock
from lcbench.sweep.jobs import Job


def job(folder: Path, seed: int, status: str = "waiting", error: str | None = None, step: int = 0) -> Job:
    run = RunFolder(folder / str(seed))
    run.path.mkdir(parents=True, exist_ok=True)
    score = {"scores/sparse/error": 0.0125, **{f"scores/sparse/error_{part}": 1 for part in ("low", "high", "n")}}
    run.write_result({"status": status, "task/headline": "error", **score})
    if step:
        run.metrics.write_text(f"{','.join(CURVES)}\n{step},1,1,1,1,0.5,0.25\n{step + 1},1,1")
    words = [f"seed={seed}", "position=rope"]
    return Job(words, " ".join(words), run, steps=600, status=status, error=error)


def lines(jobs: list[Job], width: int = 80, height: int = 24, board: Board | None = None) -> list[str]:
    screen = io.StringIO()
    console = Console(file=screen, width=width, height=height)
    console.print((board or Board(console)).table(jobs, width, height))
    return screen.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_job_has_its_line_and_says_how_far_it_is(tmp_path, width):
    long = "RuntimeError: " + "a cause that is longer than any line can be, " * 5 + "\nand a second line"
    jobs = [
        job(tmp_path, 0, "completed"),
        job(tmp_path, 1, "failed", long),
        job(tmp_path, 2, "running", step=150),
        job(tmp_path, 3),
    ]
    shown = lines(jobs, width)
    assert all(len(line) <= width for line in shown)
    assert len(shown) == len(jobs) + 2
    assert "done" in shown[1]
    assert "1.25 %" in shown[1]
    assert "failed" in shown[2]
    assert "…" in shown[2]
    assert "150/600" in shown[3]
    assert "25.00 %" in shown[3]
    assert "waiting" in shown[4]
    assert shown[5].strip().startswith("1 of 4 done, 1 running, 1 waiting, 1 failed"[: width - 8])


def test_a_long_name_keeps_what_tells_it_from_others(tmp_path):
    jobs = [job(tmp_path, seed, "failed", "a cause " * 9) for seed in range(2)]
    for j in jobs:
        j.label = f"model.n_heads=2 position=transformer_xl optimizer.lr=1e-3 seed={j.folder.path.name}"
    shown = lines(jobs)
    assert shown[1].startswith("…")
    for seed in range(2):
        assert f"lr=1e-3 seed={seed}  failed" in shown[1 + seed]
        assert "a cause" in shown[1 + seed]
    assert "n_heads=2 position=transformer_xl lr=1e-3 seed=0 " in lines(jobs, width=100)[1]
    assert "model.n_heads=2 position=transformer_xl optimizer.lr=1e-3 seed=0 " in lines(jobs, width=140)[1]


def test_what_does_not_fit_is_counted_and_what_matters_stays(tmp_path):
    jobs = [job(tmp_path, seed, "completed") for seed in range(30)]
    jobs[3] = job(tmp_path, 3, "failed", "lost")
    jobs[20] = job(tmp_path, 20, "running", step=10)
    jobs += [job(tmp_path, seed) for seed in range(30, 40)]
    shown = lines(jobs, height=10)
    assert len(shown) <= 10
    assert any("seed=3 " in line and "lost" in line for line in shown)
    assert any("seed=20 " in line and "running" in line for line in shown)
    assert not any("seed=0 " in line for line in shown)
    assert any("seed=29 " in line for line in shown)
    assert shown[-1] == "28 of 40 done, 1 running, 10 waiting, 1 failed"


def test_without_a_terminal_a_line_when_a_job_starts_or_ends_and_nothing_else(tmp_path):
    screen = io.StringIO()
    jobs = [job(tmp_path, 0, "completed"), job(tmp_path, 1), job(tmp_path, 2)]
    with Board(Console(file=screen, width=40)) as board:
        board.look(jobs)
        jobs[1].status = "running"
        for _ in range(3):
            board.look(jobs)
        jobs[2].status, jobs[1].status = "failed", "completed"
        jobs[2].error = "no [room] for it" + " at all" * 20
        for _ in range(3):
            board.look(jobs)
    assert screen.getvalue().splitlines() == [
        "started seed=1 position=rope",
        "completed seed=1 position=rope after 0 s: error 1.25 %",
        f"failed seed=2 position=rope after 0 s: no [room] for it{' at all' * 20}",
    ]
    assert screen.getvalue().isprintable() or "\x1b" not in screen.getvalue()


def test_time_left_goes_from_the_steps_seen_here(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("lcbench.sweep.board.time.monotonic", lambda: now)
    screen = Console(file=io.StringIO())
    board, running = Board(screen), job(tmp_path, 0, "running", step=300)
    assert "starting" in lines([running], board=board)[1]
    job(tmp_path, 0, "running", step=400)
    now = 1010.0
    assert "20 s left" in lines([running], board=board)[1]
    job(tmp_path, 0, "running", step=600)
    assert "scoring" in lines([running], board=board)[1]


def test_a_clock():
    assert [clock(s) for s in (0.4, 99, 100, 3600, 7200)] == ["0 s", "99 s", "1:40 min", "60:00 min", "2:00 h"]


def test_an_unreadable_record_is_no_reason_to_stop(tmp_path):
    broken = job(tmp_path, 0, "completed")
    broken.folder.result.write_text(json.dumps({"status": "completed"}))
    assert "done" in lines([broken])[1]
