"""A run from start to finish: its record, its curves, and what happens when it is stopped or fails."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import lcbench
from lcbench.engine.callbacks import load_checkpoint
from tests.conftest import TINY


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


def test_a_run_leaves_a_complete_record(run_here):
    result, folder, screen = run_here()
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["status"] == "completed"
    assert result["error"] is None
    for name in ("in_distribution", "sparse", "dense", "sparse_length_4x"):
        value = result[f"scores/{name}/error"]
        assert result[f"scores/{name}/error_low"] <= value <= result[f"scores/{name}/error_high"]
        assert result[f"scores/{name}/sequence_error_n"] == 64
        assert name in screen
    for key in ("parameters", "train_tokens", "train_flops", "tokens_per_second", "peak_memory_bytes", "wall_seconds"):
        assert result[f"cost/{key}"] > 0
    assert result["cost/train_tokens"] == 6 * 8 * 15
    assert result["cost/parameters"] == sum(w.numel() for w in weights(folder).values())
    assert result["versions/torch"].startswith(torch.__version__.split("+")[0])
    assert str(folder) in screen.replace("\n", "")


def test_curves_have_a_row_for_every_logged_step(run_here):
    _, folder, _ = run_here()
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [2, 3, 4, 6]
    assert [row["evaluation_error"] != "" for row in rows] == [False, True, False, True]
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    assert [int(row["tokens"]) for row in rows] == [step * 8 * 15 for step in (2, 3, 4, 6)]


def test_the_saved_config_composes_to_the_same_run(run_here):
    from lcbench.composition import from_config

    _, folder, _ = run_here()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert folder.name.endswith(from_config(config).hash)


def test_the_same_command_again_shows_the_finished_run(run_here):
    first, folder, _ = run_here()
    written = (folder / "result.json").stat().st_mtime_ns
    second, same, screen = run_here()
    assert (second, same) == (first, folder)
    assert (folder / "result.json").stat().st_mtime_ns == written
    assert "finished" in screen


def test_rerun_starts_over_and_gives_the_same_scores(run_here):
    first, folder, _ = run_here()
    before = weights(folder)
    second, same, _ = run_here("rerun=true")
    assert same == folder
    assert {k: v for k, v in first.items() if k.startswith("scores/")} == {
        k: v for k, v in second.items() if k.startswith("scores/")
    }
    assert all(torch.equal(value, before[key]) for key, value in weights(folder).items())


def test_watching_does_not_change_what_is_computed(run_here):
    _, quiet, _ = run_here("trainer.evaluate_every=0", "trainer.log_every=1")
    _, watched, _ = run_here("trainer.evaluate_every=1", "trainer.checkpoint_every=1")
    before = weights(quiet)
    assert all(torch.equal(value, before[key]) for key, value in weights(watched).items())


@pytest.mark.parametrize("stop_after", [2, 3, 5])
@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("trainer.accumulate=2",),
        ("dataset.size=20", "model.dropout=0.3"),
        ("attention=infini", "attention.segment=4", "dataset=stream", "dataset.tokens=6"),
    ],
)
def test_a_stopped_run_continues_bit_identically(run_here, tmp_path, monkeypatch, stop_after, extra):
    whole, whole_folder, _ = run_here(*extra, f"outputs={tmp_path}/whole")

    from lcbench.engine import callbacks

    original = callbacks.Curves._row

    def interrupting(self, module, step, light):
        original(self, module, step, light)
        if step >= stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Curves, "_row", interrupting)
        stopped, folder, _ = run_here(*extra, "trainer.log_every=1", f"outputs={tmp_path}/parts")
    assert stopped["status"] == "interrupted"
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == stop_after

    resumed, same, screen = run_here(*extra, "trainer.log_every=1", f"outputs={tmp_path}/parts")
    assert same == folder
    assert f"continuing after step {stop_after}" in screen
    assert resumed["status"] == "completed"
    before = weights(whole_folder)
    assert all(torch.equal(value, before[key]) for key, value in weights(folder).items())
    scores = {key: value for key, value in whole.items() if key.startswith("scores/")}
    assert scores == {key: value for key, value in resumed.items() if key.startswith("scores/")}
    steps = [int(row["step"]) for row in csv.DictReader((folder / "metrics.csv").open())]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert resumed["cost/train_tokens"] == whole["cost/train_tokens"]


def test_a_run_stopped_while_scoring_is_resumed_by_its_folder_alone(run_here, tmp_path, monkeypatch):
    from lcbench.cli import main
    from lcbench.engine.progress import Progress

    whole, _, _ = run_here(f"outputs={tmp_path}/whole")
    original = Progress.tick

    def interrupting(self, done):
        original(self, done)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "tick", interrupting)
        stopped, folder, _ = run_here("evaluation.batch_size=8", f"outputs={tmp_path}/parts")
    assert stopped["status"] == "interrupted"
    monkeypatch.chdir(tmp_path)
    assert main(["resume", str(folder.relative_to(tmp_path))]) == 0
    resumed = json.loads((folder / "result.json").read_text())
    assert resumed["status"] == "completed"
    assert resumed["train/steps"] == 6
    scores = {key: value for key, value in whole.items() if key.startswith("scores/")}
    assert scores == {key: value for key, value in resumed.items() if key.startswith("scores/")}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_logger_that_cannot_start_is_left_out(run_here, monkeypatch):
    from lcbench.logger.none import Nothing

    def broken(self, facts):
        raise OSError("no room for a log")

    monkeypatch.setattr(Nothing, "start", broken)
    result, folder, screen = run_here()
    assert result["status"] == "completed"
    assert "left out from here on: OSError: no room for a log" in screen
    assert "no room for a log" in (folder / "run.log").read_text()


def test_gradient_accumulation_equals_a_larger_batch(run_here):
    _, large, _ = run_here("trainer.batch_size=16", "position=none", "optimizer.epsilon=0.1", "task.loss=noisy")
    _, parts, _ = run_here(
        "trainer.batch_size=8",
        "trainer.accumulate=2",
        "position=none",
        "optimizer.epsilon=0.1",
        "task.loss=noisy",
    )
    before = weights(large)
    for key, value in weights(parts).items():
        torch.testing.assert_close(value, before[key], atol=1e-6, rtol=0)


def test_a_diverging_loss_stops_with_step_rate_and_last_loss(run_here):
    result, folder, screen = run_here("optimizer.lr=1e30", "trainer.max_steps=20")
    assert result["status"] == "failed"
    for text in (result["error"], screen.replace("\n", " "), (folder / "run.log").read_text()):
        assert "learning rate 1e+30" in text
        assert "last finite loss" in text
        assert "step" in text
    assert "Traceback" not in screen
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"


def test_a_bug_leaves_its_traceback_in_the_log_and_its_sentence_in_the_record(run_here, monkeypatch):
    from lcbench.task.flip_flop import FlipFlop

    def broken(self, batch, predictions):
        raise ZeroDivisionError("counted nothing")

    monkeypatch.setattr(FlipFlop, "outcomes", broken)
    result, folder, _ = run_here()
    assert result["status"] == "failed"
    assert result["error"] == "ZeroDivisionError: counted nothing"
    assert "Traceback" in (folder / "run.log").read_text()


def test_stops_early_once_solved_twice(run_here):
    result, _, _ = run_here("trainer.stop_at_error=0.99", "trainer.evaluate_every=1", "trainer.max_steps=50")
    assert result["status"] == "completed"
    assert result["train/steps"] == 2


def test_a_run_that_stopped_early_does_not_train_on_when_resumed(run_here, monkeypatch):
    from lcbench.engine.run import _Run

    words = ("trainer.stop_at_error=0.99", "trainer.evaluate_every=1", "trainer.max_steps=50")

    def failing(self, model):
        raise OSError("lost while scoring")

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_score", failing)
        assert run_here(*words)[0]["status"] == "failed"
    result, _, _ = run_here(*words)
    assert result["status"] == "completed"
    assert result["train/steps"] == 2


def test_bf16_trains(run_here):
    result, _, _ = run_here("trainer.precision=bf16-mixed")
    assert result["status"] == "completed"


def test_deterministic_mode_trains_every_kind_of_layer(run_here):
    for extra in (["position=cope"], ["position=t5", "model.dropout=0.1"], ["model=lstm", "model.n_layers=1"]):
        base = [word for word in TINY if not (extra[0].startswith("model=") and word.startswith("model.n_h"))]
        result, _, _ = run_here("trainer.deterministic=true", *extra, base=base)
        assert result["status"] == "completed", result["error"]


def test_the_lstm_learns_flip_flop(run_here):
    words = ["model=lstm", "model.d_model=32", "trainer.max_steps=250", "optimizer.lr=0.01", "trainer.batch_size=32"]
    base = [word for word in TINY if not word.startswith("model.n_h")]
    result, _, _ = run_here(*words, base=base)
    assert result["scores/in_distribution/error"] < 0.1


def test_a_decoder_learns_flip_flop(run_here):
    words = ["model.n_layers=2", "model.d_model=32", "trainer.max_steps=600", "trainer.batch_size=32"]
    result, _, _ = run_here(*words, "optimizer.lr=3e-3", "evaluation.sets=[in_distribution]")
    assert result["scores/in_distribution/error"] < 0.1


def test_the_best_checkpoint_is_the_one_with_the_lowest_light_error(run_here):
    _, folder, _ = run_here("trainer.evaluate_every=1", "trainer.max_steps=12", "optimizer.lr=0.01")
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    errors = [float(row["evaluation_error"]) for row in rows]
    best = load_checkpoint(folder / "checkpoints" / "best.ckpt")["global_step"]
    assert best == errors.index(min(errors)) + 1


def test_a_trained_network_loads_and_answers_as_it_was_scored(run_here):
    from lcbench.engine.evaluation import score

    result, folder, _ = run_here()
    trained = lcbench.load(folder)
    again = score(
        trained.model,
        trained.experiment.task,
        "sparse",
        examples=64,
        batch_size=7,
        seed=0,
        device="cpu",
        objective=trained.experiment.objective,
    )
    assert again["error"] == result["scores/sparse/error"]
    assert again["error_n"] == result["scores/sparse/error_n"]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_real_process_cleanly(tmp_path, times):
    words = [sys.executable, "-m", "lcbench", *TINY, "trainer.max_steps=100000", "trainer.log_every=1"]
    process = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    metrics = tmp_path / "outputs" / "flip_flop"
    deadline = time.monotonic() + 120
    while not any(len(p.read_text().splitlines()) > 5 for p in metrics.glob("*/metrics.csv")):
        assert time.monotonic() < deadline, "no step in two minutes"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    folder = next(metrics.iterdir())
    record = json.loads((folder / "result.json").read_text())
    assert record["status"] == "interrupted"
    assert record["error"] == "stopped by Ctrl-C; the same command continues"
    rows = (folder / "metrics.csv").read_text().splitlines()
    if times == 1:
        assert int(rows[-1].split(",")[0]) == load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]
