"""A trained network scored again: the same scores for the same options, and the run's own files untouched."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import lcbench
from lcbench.engine.callbacks import load_checkpoint
from lcbench.errors import ConfigurationError
from lcbench.results.record import hold
from tests.conftest import TINY
from tests.engine.test_resume import files_of, interrupt_after


def evaluate(folder: Path, *overrides: str):
    """Returns the record and the screen."""
    screen = io.StringIO()
    return lcbench.evaluate(folder, overrides, Console(file=screen, width=200)), screen.getvalue()


def scores(record):
    return {key: value for key, value in record.items() if key.startswith("scores/")}


def records_of(folder: Path) -> list[Path]:
    return sorted((folder / "evaluations").glob("*.json"))


def test_without_overrides_the_record_equals_the_runs_own_scores(run_here):
    result, folder, _ = run_here("model.dropout=0.2")
    before = files_of(folder)
    record, screen = evaluate(folder)
    assert scores(record) == scores(result)
    assert {key: files_of(folder)[key] for key in before} == before
    (path,) = records_of(folder)
    assert json.loads(path.read_text()) == record
    assert path.name.startswith("default-")
    for key in ("seed", "experiment", "task/headline", "versions/torch", "machine/cores", "chance/error"):
        assert record[key] == result[key]
    assert (record["status"], record["error"]) == ("completed", None)
    assert (record["evaluated/step"], record["evaluated/checkpoint"]) == (6, "last")
    assert record["evaluated/run"] == folder.name
    assert record["config/evaluation.examples"] == 64
    assert record["cost/wall_seconds"] > 0
    assert "sparse_length_4x" in screen


def test_other_sets_lengths_and_counts(run_here):
    _, folder, _ = run_here()
    words = ("evaluation.sets=[sparse,dense]", "evaluation.lengths=[32,1k]", "evaluation.examples=16")
    record, _ = evaluate(folder, *words)
    found = {key.split("/")[1] for key in scores(record)}
    assert found == {
        "sparse",
        "dense",
        "sparse_length_32",
        "dense_length_32",
        "sparse_length_1000",
        "dense_length_1000",
    }
    assert record["scores/sparse_length_1000/sequence_error_n"] == 16
    assert record["config/evaluation.lengths"] == [32, 1000]
    (path,) = records_of(folder)
    assert path.name.startswith("examples-16_lengths-32-1k_sets-sparse-dense-")
    # more examples of the same set begin with the same examples
    again, _ = evaluate(folder, "evaluation.sets=[sparse]", "evaluation.examples=64")
    whole = run_here()[0]
    assert again["scores/sparse/error"] == whole["scores/sparse/error"]


def test_the_same_again_shows_the_record_without_scoring(run_here, monkeypatch):
    _, folder, _ = run_here()
    first, _ = evaluate(folder, "evaluation.sets=[dense]")
    from lcbench.engine import evaluate as module

    def computing(*arguments, **options):
        raise AssertionError("scored again")

    before = files_of(folder)
    with monkeypatch.context() as patch:
        patch.setattr(module, "scored_sets", computing)
        again, screen = evaluate(folder, "evaluation.sets=[dense]", "evaluation.batch_size=3", "trainer.threads=1")
    assert again == first
    assert "is recorded (rerun=true scores again)" in screen
    assert "dense" in screen
    assert {k: v for k, v in files_of(folder).items() if ".lock" not in k} == {
        k: v for k, v in before.items() if ".lock" not in k
    }
    forced, _ = evaluate(folder, "evaluation.sets=[dense]", "rerun=true")
    assert scores(forced) == scores(first)
    assert len(records_of(folder)) == 1
    evaluate(folder, "evaluation.sets=[dense]", "evaluation.seed=1")
    evaluate(folder, "evaluation.sets=[dense]", "trainer.precision=bf16-mixed")
    assert len(records_of(folder)) == 3


def test_the_best_weights_can_be_scored_and_a_run_can_ask_for_them(run_here):
    words = ("trainer.evaluate_every=1", "trainer.max_steps=12", "optimizer.lr=0.02", "evaluation.light_examples=200")
    last, folder, _ = run_here(*words)
    best_step = load_checkpoint(folder / "checkpoints" / "best.ckpt")["global_step"]
    assert best_step < 12, "the seed was to show a best before the last"
    record, _ = evaluate(folder, "evaluation.checkpoint=best")
    assert (record["evaluated/step"], record["evaluated/checkpoint"]) == (best_step, "best")
    assert scores(record) != scores(last)
    own, _, _ = run_here(*words, "evaluation.checkpoint=best")
    assert scores(own) == scores(record)
    assert (own["evaluated/step"], own["evaluated/checkpoint"]) == (best_step, "best")
    assert (last["evaluated/step"], last["evaluated/checkpoint"]) == (12, "last")
    trained = lcbench.load(folder, "best")
    assert torch.equal(
        next(trained.model.parameters()),
        next(iter(load_checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"].values())),
    )


def test_an_unfinished_run_can_be_scored_and_goes_on(run_here, monkeypatch):
    with interrupt_after(monkeypatch, 3):
        _, folder, _ = run_here()
    from lcbench.results.record import RunFolder

    # also while it is being trained
    with RunFolder(folder).held():
        early, _ = evaluate(folder)
    assert early["evaluated/step"] == 3
    result, _, _ = run_here()
    late, _ = evaluate(folder)
    assert late["evaluated/step"] == 6
    assert scores(late) == scores(result)
    assert len(records_of(folder)) == 2


def test_a_stopped_evaluation_keeps_its_sets_and_scores_the_rest(run_here, monkeypatch):
    result, folder, _ = run_here()
    from lcbench.engine import evaluation

    original, seen = evaluation.score, []

    def watched(model, task, name, **options):
        seen.append(name)
        if name == "dense":
            os.kill(os.getpid(), signal.SIGINT)
        return original(model, task, name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "score", watched)
        stopped, screen = evaluate(folder)
    assert stopped["status"] == "interrupted"
    assert "the same command continues" in screen
    assert seen == ["in_distribution", "sparse", "dense"]
    assert {key.split("/")[1] for key in scores(stopped)} == {"in_distribution", "sparse"}
    seen.clear()

    def counted(model, task, name, **options):
        seen.append(name)
        return original(model, task, name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "score", counted)
        done, _ = evaluate(folder)
    assert seen == ["dense", "sparse_length_4x"]
    assert done["status"] == "completed"
    assert scores(done) == scores(result)
    assert done["cost/wall_seconds"] > stopped["cost/wall_seconds"]


def test_killed_in_the_middle_it_keeps_what_is_finished(run_here, tmp_path):
    _, folder, _ = run_here()
    code = f"""
import os, signal
import lcbench
from lcbench.engine import evaluation
original = evaluation.score
def dying(model, task, name, **options):
    if name == "dense":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(model, task, name, **options)
evaluation.score = dying
lcbench.evaluate({str(folder)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (path,) = records_of(folder)
    partial = json.loads(path.read_text())
    assert partial["status"] == "running"
    assert {key.split("/")[1] for key in scores(partial)} == {"in_distribution", "sparse"}
    record, screen = evaluate(folder)
    assert "scored before: in_distribution, sparse" in screen
    assert record["status"] == "completed"


def test_a_failure_is_recorded_with_its_cause_and_tried_again(run_here, monkeypatch):
    _, folder, _ = run_here()
    from lcbench.task.flip_flop import FlipFlop

    def broken(self, batch, predictions):
        raise ZeroDivisionError("counted nothing")

    with monkeypatch.context() as patch:
        patch.setattr(FlipFlop, "outcomes", broken)
        failed, _ = evaluate(folder)
    assert (failed["status"], failed["error"]) == ("failed", "ZeroDivisionError: counted nothing")
    (log,) = (folder / "evaluations").glob("*.log")
    assert "Traceback" in log.read_text()
    assert evaluate(folder)[0]["status"] == "completed"


def test_ctrl_c_ends_the_command_with_130(run_here):
    _, folder, _ = run_here()
    code = f"""
import os, signal, sys
from lcbench.cli import main
from lcbench.engine import evaluation
original = evaluation.score
def interrupted(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments, **options)
evaluation.score = interrupted
sys.exit(main(["evaluate", {str(folder)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (path,) = records_of(folder)
    assert json.loads(path.read_text())["status"] == "interrupted"


def test_the_second_process_on_an_evaluation_says_so_and_leaves(run_here):
    _, folder, _ = run_here()
    evaluate(folder)
    (lock,) = (folder / "evaluations").glob(".*.lock")
    (path,) = records_of(folder)
    path.unlink()
    with hold(lock, path), pytest.raises(ConfigurationError, match=r"is being computed already, by process \d+"):
        evaluate(folder)
    assert records_of(folder) == []
    # another evaluation of the same run is another matter
    with hold(lock, path):
        assert evaluate(folder, "evaluation.seed=1")[0]["status"] == "completed"


def test_a_run_of_another_place_is_scored_where_it_lies(run_here, tmp_path):
    result, folder, _ = run_here()
    there = tmp_path / "a" / "friend" / "sent-this"
    there.parent.mkdir(parents=True)
    shutil.move(folder, there)
    (there / "result.json").unlink()
    record, _ = evaluate(there)
    assert scores(record) == scores(result)
    assert [path.name for path in tmp_path.iterdir() if path.name != "flip_flop"] == ["a"]


def test_a_damaged_record_is_said_and_made_again(run_here):
    _, folder, _ = run_here()
    evaluate(folder)
    (path,) = records_of(folder)
    path.write_text('{"status": "comp')
    record, screen = evaluate(folder)
    assert "cannot be read" in screen
    assert record["status"] == "completed"


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_scored(run_here):
    _, folder, _ = run_here("trainer.checkpoint_every=2")
    last = folder / "checkpoints" / "last.ckpt"
    last.unlink()
    last.write_bytes(b"")
    record, screen = evaluate(folder)
    assert "last.ckpt cannot be read" in screen
    assert record["evaluated/step"] <= 6
    assert last.read_bytes() == b""


REFUSED = [
    ("evaluation.sets=[spars]", "sparse"),
    ("evaluation.set=[sparse]", "closest is evaluation.sets"),
    ("evaluation.checkpoint=first", "must be 'last' or 'best'"),
    ("evaluation.examples=0", "positive"),
    ("evaluation.lengths=[1,2]", "length"),
    ("model.d_model=32", "takes the network as it was trained"),
    ("position=rope", "takes the network as it was trained"),
    ("task.length=64", "takes the network as it was trained"),
    ("trainer.max_steps=9", "takes the network as it was trained"),
    ("seed=1", "takes the network as it was trained"),
    ("outputs=x", "takes the network as it was trained"),
    ("evaluation.seed=1,2", "several values"),
]


def test_mistakes_are_one_sentence_and_leave_nothing(run_here):
    _, folder, _ = run_here()
    before = files_of(folder)
    for word, hint in REFUSED:
        with pytest.raises(ConfigurationError) as caught:
            evaluate(folder, word)
        said = str(caught.value)
        assert hint in said
        assert "\n" not in said
    assert files_of(folder) == before


def test_a_table_of_positions_is_checked_before_scoring(run_here):
    words = ("position=absolute_learned", "evaluation.sets=[sparse]")
    _, folder, _ = run_here(*words)
    with pytest.raises(ConfigurationError, match=r"sparse_length_64 needs 63: .* gets no more of them; .* at most 17"):
        evaluate(folder, "evaluation.lengths=[64]")
    assert not (folder / "evaluations").exists()


def test_a_run_without_a_checkpoint_says_so(run_here):
    _, folder, _ = run_here()
    shutil.rmtree(folder / "checkpoints")
    for word in ("evaluation.checkpoint=last", "evaluation.checkpoint=best"):
        with pytest.raises(ConfigurationError, match=r"no checkpoint that can be read|best.ckpt does not exist"):
            evaluate(folder, word)
    with pytest.raises(ConfigurationError, match=r"is no run: it has no config\.yaml"):
        evaluate(folder.parent)


def test_foreign_code_needs_trust(run_here, capsys):
    import yaml

    from lcbench.cli import main

    _, folder, _ = run_here()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["objective"]["_target_"] = "os.getcwd"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for words in (["evaluate", str(folder)], ["resume", str(folder), "trainer.max_steps=9"]):
        assert main(words) == 2
        assert "objective._target_=os.getcwd is no class of lcbench" in capsys.readouterr().err


def test_an_evaluation_is_a_wandb_run_of_its_own(run_here, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    _, folder, _ = run_here("logger=wandb", "tags=[first]")
    before = files_of(folder)
    record, _ = evaluate(folder, "evaluation.sets=[dense]")
    # W&B's own service may write its log a little later
    assert {k: v for k, v in files_of(folder).items() if k in before and "/logs/" not in k} == {
        k: v for k, v in before.items() if "/logs/" not in k
    }
    (binary,) = (folder / "evaluations").glob("*/wandb/offline-run-*/*.wandb")
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(binary)]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout)
    run_id = json.loads((folder / "wandb" / "page.json").read_text())["id"]
    assert found["run_id"] != run_id
    assert found["config"]["evaluated"] == {"run": folder.name, "wandb_id": run_id}
    assert "first" in found["tags"]
    assert found["name"].startswith(f"{folder.name} sets-dense-")
    assert found["summary"]["scores/dense/error"] == pytest.approx(record["scores/dense/error"])
    assert found["exit_code"] == 0


def test_show_lists_a_runs_evaluations(run_here, capsys):
    from lcbench.cli import main

    _, folder, _ = run_here()
    evaluate(folder, "evaluation.sets=[dense]", "evaluation.lengths=[32]")
    (folder / "evaluations" / "broken-00000000.json").write_text("{")
    assert main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    own, later = shown.split("evaluation lengths-32_sets-dense-")
    assert "sparse_length_4x" in own
    assert "last weights, of step 6" in later
    assert "dense_length_32" in later
    assert "broken-00000000.json: it cannot be read" in shown.replace("\n", "")


def test_the_command(command, tmp_path):
    assert command(*TINY).returncode == 0
    (folder,) = (tmp_path / "outputs" / "flip_flop").iterdir()
    name = f"outputs/flip_flop/{folder.name}"
    done = command("evaluate", name, "evaluation.sets=[sparse]", "evaluation.lengths=[1k]", "evaluation.examples=8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sparse_length_1000" in done.stdout
    compared = command("compare", "outputs", "--metric", "sparse_length_1000/error")
    assert "sparse_length_1000/error comes from later evaluations in 1 of 1 completed runs" in compared.stdout
