"""A run that continues another one: exact, beside it, and never over it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lcbench.engine.callbacks import load_checkpoint
from lcbench.errors import ConfigurationError


def resume(folder: Path, *overrides: str):
    """Returns the record, the folder of the newest run and the screen."""
    from lcbench.again import resume as resume_run

    screen = io.StringIO()
    record = resume_run(folder, overrides, Console(file=screen, width=200))
    found = [path for path in folder.parent.iterdir() if f"run folder  {path}" in screen.getvalue().replace("\n", "")]
    return record, (found or [folder])[0], screen.getvalue()


def files_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file's content and time of change."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


def last(folder: Path):
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same_training(a: Path, b: Path) -> None:
    first, second = last(a), last(b)
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "tokens_seen"):
        assert equal(first[part], second[part]), part


def scores(record):
    return {key: value for key, value in record.items() if key.startswith("scores/")}


@contextmanager
def interrupt_after(monkeypatch, step):
    from lcbench.engine.callbacks import Curves

    original = Curves._row

    def interrupting(self, module, at, light):
        original(self, module, at, light)
        if at >= step:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Curves, "_row", interrupting)
        yield


@pytest.mark.parametrize("extra", [(), ("trainer.accumulate=2",), ("dataset.size=20", "model.dropout=0.3")])
def test_a_longer_run_equals_one_that_was_long_from_the_start(run_here, extra, tmp_path):
    words = (*extra, "trainer.log_every=1")
    straight, whole, _ = run_here(*words, "trainer.max_steps=12", f"outputs={tmp_path}/whole")
    first, folder, _ = run_here(*words, f"outputs={tmp_path}/parts")
    before = files_of(folder)
    longer, new, screen = resume(folder, "trainer.max_steps=12")
    assert files_of(folder) == before
    assert new.parent == folder.parent
    assert new != folder
    assert "continuing after step 6" in screen
    assert "learning rate" not in screen
    assert_same_training(whole, new)
    assert scores(longer) == scores(straight)
    rows = [list(csv.DictReader((path / "metrics.csv").open())) for path in (whole, new)]
    for column in ("step", "tokens", "learning_rate", "loss", "evaluation_error"):
        assert [row[column] for row in rows[0]] == [row[column] for row in rows[1]], column
    assert longer["cost/train_tokens"] == straight["cost/train_tokens"]
    assert longer["cost/train_flops"] == straight["cost/train_flops"]
    assert longer["cost/wall_seconds"] > first["cost/wall_seconds"]
    assert longer["continues/run"] == folder.name
    assert longer["continues/step"] == 6
    assert longer["config/continues"] == "trainer.max_steps=6"


def test_a_longer_run_is_not_the_run_that_was_long_from_the_start(run_here):
    _, whole, _ = run_here("trainer.max_steps=12")
    _, folder, _ = run_here()
    _, new, _ = resume(folder, "trainer.max_steps=12")
    assert len({path.name[-8:] for path in (whole, folder, new)}) == 3
    again, same, screen = resume(folder, "trainer.max_steps=12")
    assert same == new
    assert "this run is finished" in screen
    assert again["status"] == "completed"


def test_the_rates_after_resuming_are_those_of_the_longer_schedule(run_here, monkeypatch):
    applied = []
    original = torch.optim.AdamW.step

    def watched(self, *arguments, **options):
        applied.append([group["lr"] for group in self.param_groups])
        return original(self, *arguments, **options)

    words = (
        "optimizer.schedule=cosine",
        "optimizer.lr=0.01",
        "optimizer.warmup_steps=2",
        "optimizer.weight_decay=0.1",
    )
    _, folder, _ = run_here(*words)
    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    _, new, screen = resume(folder, "trainer.max_steps=12")
    from lcbench.trained import experiment_of

    recipe = experiment_of(new).optimizer
    expected = [recipe.rate(step, 12) for step in range(6, 12)]
    assert len(applied) == 6
    for rates, rate in zip(applied, expected, strict=True):
        assert len(rates) == 2
        assert rates == pytest.approx([rate, rate], rel=1e-12)
    assert recipe.rate(6, 6) == 0
    assert expected[0] == pytest.approx(0.0065, abs=0.0005)
    assert "the learning rate goes on at 0.00655, where it would have been 0" in screen


def test_a_stopped_longer_run_continues_by_either_command(run_here, monkeypatch, tmp_path):
    _, whole, _ = run_here("trainer.max_steps=12", f"outputs={tmp_path}/whole")
    _, folder, _ = run_here(f"outputs={tmp_path}/parts")
    with interrupt_after(monkeypatch, 8):
        stopped, new, _ = resume(folder, "trainer.max_steps=12")
    assert stopped["status"] == "interrupted"
    with interrupt_after(monkeypatch, 10):
        stopped, same, screen = resume(folder, "trainer.max_steps=12")
    assert same == new
    assert "continuing after step 8" in screen
    done, same, screen = resume(new)
    assert same == new
    assert "continuing after step 10" in screen
    assert done["status"] == "completed"
    assert done["continues/run"] == folder.name
    assert_same_training(whole, new)


def test_a_longer_run_killed_at_any_moment_continues(run_here, tmp_path):
    words = ("trainer.log_every=1", "trainer.checkpoint_every=7", "trainer.evaluate_every=50", "trainer.threads=1")
    _, whole, _ = run_here(*words, "trainer.max_steps=400", f"outputs={tmp_path}/whole")
    _, first, _ = run_here(*words, "trainer.max_steps=50", f"outputs={tmp_path}/parts")
    before = files_of(first)

    def rows():
        found = [path for path in first.parent.glob("*/metrics.csv") if path.parent != first]
        return len(found[0].read_text().splitlines()) if found else 0

    for _ in range(2):
        reached = max(rows(), 51)
        command = [sys.executable, "-m", "lcbench", "resume", str(first), "trainer.max_steps=400"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while process.poll() is None and rows() <= reached:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it was killed often enough"
        process.kill()
        process.wait()
    record, new, screen = resume(first, "trainer.max_steps=400")
    assert "continuing after step" in screen
    assert record["status"] == "completed"
    assert_same_training(whole, new)
    assert files_of(first) == before
    steps = [int(row["step"]) for row in csv.DictReader((new / "metrics.csv").open())]
    assert steps == list(range(1, 401))


def test_killed_before_it_began_it_begins_again(run_here, monkeypatch):
    from lcbench.engine import origin

    _, folder, _ = run_here()
    original = origin._same

    def dying(source, target):
        if target.name == "first.ckpt":
            raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(origin, "_same", dying)
        with pytest.raises(KeyboardInterrupt):
            resume(folder, "trainer.max_steps=12")
    record, _, screen = resume(folder, "trainer.max_steps=12")
    assert "continuing after step 6" in screen
    assert record["train/steps"] == 12


def test_chains_of_longer_runs(run_here, tmp_path):
    _, whole, _ = run_here("trainer.max_steps=15", f"outputs={tmp_path}/whole")
    _, one, _ = run_here(f"outputs={tmp_path}/parts")
    _, two, _ = resume(one, "trainer.max_steps=12")
    record, three, _ = resume(two, "trainer.max_steps=15")
    assert_same_training(whole, three)
    assert record["config/continues"] == "trainer.max_steps=12 continues=(trainer.max_steps=6)"
    assert record["continues/step"] == 12
    # one step at a time is another history than both at once
    _, at_once, _ = resume(one, "trainer.max_steps=15")
    assert at_once != three
    assert_same_training(whole, at_once)


def test_an_unfinished_run_can_be_left_for_a_longer_one(run_here, monkeypatch, tmp_path):
    with interrupt_after(monkeypatch, 3):
        _, folder, _ = run_here(f"outputs={tmp_path}/parts")
    record, new, _ = resume(folder, "trainer.max_steps=12")
    assert record["config/continues"] == "trainer.max_steps=6 step=3"
    _, whole, _ = run_here("trainer.max_steps=12", f"outputs={tmp_path}/whole")
    assert_same_training(whole, new)
    # the first is still what it was, and goes on by itself
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    assert resume(folder)[0]["train/steps"] == 6


def test_seeds_that_go_on_make_one_row(run_here, tmp_path):
    from lcbench.results import compare

    for seed in (0, 1):
        _, folder, _ = run_here(f"seed={seed}")
        resume(folder, "trainer.max_steps=12")
    run_here("trainer.max_steps=12")
    (table,) = compare([tmp_path / "flip_flop"]).tables
    assert table.columns == ("trainer.max_steps", "continues")
    found = {(row.keys["trainer.max_steps"], row.keys["continues"]): row.n for row in table.rows}
    assert found == {(6, None): 2, (12, "trainer.max_steps=6"): 2, (12, None): 1}


EARLY = ("trainer.stop_at_error=0.99", "trainer.evaluate_every=1", "trainer.max_steps=10")


def test_a_run_that_stopped_early_goes_on_without_its_threshold(run_here, tmp_path):
    first, folder, _ = run_here(*EARLY, f"outputs={tmp_path}/parts")
    assert first["train/steps"] == 2
    record, new, _ = resume(folder, "trainer.stop_at_error=null")
    assert record["train/steps"] == 10
    assert record["config/continues"] == "trainer.stop_at_error=0.99"
    _, whole, _ = run_here(*EARLY, "trainer.stop_at_error=null", f"outputs={tmp_path}/whole")
    assert_same_training(whole, new)
    # a lower one that is never reached; the two evaluations so far do not count for it
    lower, _, _ = resume(folder, "trainer.stop_at_error=0.0001")
    assert lower["train/steps"] == 10


def test_a_run_that_stopped_early_does_not_go_on_with_its_threshold(run_here):
    _, folder, _ = run_here(*EARLY)
    with pytest.raises(ConfigurationError, match=r"stop_at_error=0.99: .* stopped at step 2 .* or null to train on"):
        resume(folder, "trainer.max_steps=20")
    assert len(list(folder.parent.iterdir())) == 1


REFUSED = [
    ("model.d_model=32", "keeps what its weights so far were trained with"),
    ("position=rope", "keeps what its weights so far were trained with"),
    ("seed=3", "keeps what its weights so far were trained with"),
    ("optimizer.lr=0.1", "keeps what its weights so far were trained with"),
    ("trainer.batch_size=4", "keeps what its weights so far were trained with"),
    ("trainer.precision=bf16-mixed", "keeps what its weights so far were trained with"),
    ("trainer.accumulate=2", "keeps what its weights so far were trained with"),
    ("rerun=true", "keeps what its weights so far were trained with"),
    ("trainer.max_step=12", "closest is trainer.max_steps"),
    ("trainer.max_steps=1,2", "several values"),
    ("trainer.max_steps=x", "integer"),
    ("trainer.max_steps=6", "is finished"),
    ("trainer.max_steps=5", "has 6 steps behind it"),
    ("trainer.log_every=1", "has 6 steps behind it"),
    ("logger=nowhere", "closest is none"),
    ("evaluation._target_=os.getcwd", "no such key"),
    ("outputs=elsewhere", "move its folder"),
]


def test_what_a_run_that_goes_on_may_not_change(run_here):
    _, folder, _ = run_here()
    before = files_of(folder)
    for word, hint in REFUSED:
        try:
            _, _, said = resume(folder, word)
        except ConfigurationError as error:
            said = str(error)
            assert word.split("=")[0] in said or "trainer.max_steps=6" in said
            assert "\n" not in said
        assert hint in said
    assert files_of(folder) == before
    assert len(list(folder.parent.iterdir())) == 1


def test_what_is_only_watched_continues_in_place(run_here, monkeypatch):
    with interrupt_after(monkeypatch, 3):
        _, folder, _ = run_here()
    record, same, _ = resume(folder, "logger=csv", "tags=[late]", "trainer.progress=false")
    assert same == folder
    assert record["status"] == "completed"
    assert (folder / "scores.csv").exists()
    assert record["config/tags"] == ["late"]
    assert len(list(folder.parent.iterdir())) == 1


def test_a_run_in_a_folder_of_any_name_continues_where_it_lies(run_here, monkeypatch, tmp_path):
    with interrupt_after(monkeypatch, 3):
        _, folder, _ = run_here(f"outputs={tmp_path}/there")
    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    assert resume(moved)[0]["train/steps"] == 6
    assert json.loads((moved / "result.json").read_text())["status"] == "completed"
    record, _, _ = resume(moved, "trainer.max_steps=9", f"outputs={tmp_path}/elsewhere")
    assert record["train/steps"] == 9
    assert len(list((tmp_path / "elsewhere" / "flip_flop").iterdir())) == 1


def test_where_links_cannot_be_made_checkpoints_are_copied(run_here, monkeypatch):
    from lcbench.engine import origin

    def elsewhere(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(origin, "link", elsewhere)
    _, folder, _ = run_here()
    record, new, _ = resume(folder, "trainer.max_steps=12")
    assert record["train/steps"] == 12
    inodes = [{file.stat().st_ino for file in (path / "checkpoints").iterdir()} for path in (folder, new)]
    assert not inodes[0] & inodes[1]


def test_a_run_that_is_being_computed_is_left_alone(run_here):
    from lcbench.results.record import RunFolder

    _, folder, _ = run_here()
    with RunFolder(folder).held(), pytest.raises(ConfigurationError, match="is being computed already"):
        resume(folder, "trainer.max_steps=12")
    assert len(list(folder.parent.iterdir())) == 1


def test_with_every_checkpoint_damaged_it_fails_instead_of_starting_over(run_here, monkeypatch):
    _, folder, _ = run_here()
    with interrupt_after(monkeypatch, 8):
        _, new, _ = resume(folder, "trainer.max_steps=12")
    for name in ("last.ckpt", "previous.ckpt"):
        (new / "checkpoints" / name).unlink(missing_ok=True)
        (new / "checkpoints" / name).write_bytes(b"")
    from_first, _, screen = resume(new, "trainer.progress=false")
    assert "continuing after step 6" in screen
    assert from_first["status"] == "completed"
    for name in ("last.ckpt", "previous.ckpt", "first.ckpt"):
        (new / "checkpoints" / name).unlink(missing_ok=True)
        (new / "checkpoints" / name).write_bytes(b"")
    (new / "result.json").unlink()
    failed, _, screen = resume(new)
    assert failed["status"] == "failed"
    assert "no checkpoint is left to continue from" in failed["error"]
    assert "Traceback" not in screen
    assert last(folder)["global_step"] == 6


def test_the_best_weights_come_along(run_here):
    words = ("trainer.evaluate_every=1", "optimizer.lr=0.01", "trainer.max_steps=9", "evaluation.light_examples=200")
    _, folder, _ = run_here(*words)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    errors = [float(row["evaluation_error"]) for row in rows]
    _, new, _ = resume(folder, "trainer.max_steps=18")
    rows = list(csv.DictReader((new / "metrics.csv").open()))
    longer = [float(row["evaluation_error"]) for row in rows]
    assert longer[:9] == errors
    best = load_checkpoint(new / "checkpoints" / "best.ckpt")["global_step"]
    assert best == longer.index(min(longer)) + 1


def test_other_light_evaluations_start_another_contest_for_the_best(run_here):
    _, folder, _ = run_here("trainer.evaluate_every=1")
    _, new, _ = resume(folder, "trainer.max_steps=9", "evaluation.light_examples=64", "evaluation.sets=[dense]")
    rows = list(csv.DictReader((new / "metrics.csv").open()))[6:]
    errors = [float(row["evaluation_error"]) for row in rows if row["evaluation_error"]]
    best = load_checkpoint(new / "checkpoints" / "best.ckpt")["global_step"]
    assert best == 7 + errors.index(min(errors))


def test_a_run_that_was_once_started_over_is_resumed_and_not_started_over(run_here, monkeypatch):
    with interrupt_after(monkeypatch, 3):
        _, folder, _ = run_here("rerun=true")
    _, _, screen = resume(folder)
    assert "continuing after step 3" in screen
