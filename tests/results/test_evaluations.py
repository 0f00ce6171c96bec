"""Scores from later evaluations in a comparison: what they add, what they never replace."""

from __future__ import annotations

import json

from lcbench.results import compare
from tests.results.synthetic import write_run, write_seeds

LONG = "sparse_length_1000"


def write_evaluation(folder, errors, *, name="lengths-1k-00000001", step=600, n=1000, **changes):
    """The record of an evaluation; errors by ``evaluation set/metric``."""
    record = {"status": "completed", "seed": 0, "evaluated/step": step, "evaluated/checkpoint": "last"}
    for score, value in errors.items():
        ends = {"": value, "_low": value - 0.01, "_high": value + 0.01, "_n": n}
        record |= {f"scores/{score}{end}": number for end, number in ends.items()}
    (folder / "evaluations").mkdir(exist_ok=True)
    (folder / "evaluations" / f"{name}.json").write_text(json.dumps(record | changes))


def write_trained(folder, errors, **changes):
    changes["record"] = {"train/steps": 600} | changes.get("record", {})
    return write_run(folder, errors, **changes)


def only_row(path, *metrics):
    (table,) = compare([path], metrics=metrics).tables
    (row,) = table.rows
    return row, table


def test_sets_that_the_run_was_not_scored_on_are_added(tmp_path):
    for seed in (0, 1):
        folder = write_trained(tmp_path / f"run-{seed}", {"sparse/error": 0.1}, seed=seed)
        write_evaluation(folder, {f"{LONG}/error": 0.2 + 0.2 * seed, f"{LONG}/sequence_error": 0.5})
    row, table = only_row(tmp_path)
    assert table.metrics == ("sparse/error", f"{LONG}/error")
    assert row.scores[f"{LONG}/error"].mean == 0.30000000000000004
    assert row.n == 2
    assert f"{LONG}/error comes from later evaluations in 2 of 2 completed runs" in table.notes
    assert not any("sparse/error comes" in note for note in table.notes)
    row, _ = only_row(tmp_path, f"{LONG}/sequence_error")
    assert row.scores[f"{LONG}/sequence_error"].mean == 0.5


def test_a_runs_own_scores_always_win(tmp_path):
    folder = write_trained(tmp_path / "run", {"sparse/error": 0.1})
    write_evaluation(folder, {"sparse/error": 0.9, "sparse/sequence_error": 0.9}, n=10**9)
    row, table = only_row(tmp_path)
    assert row.scores["sparse/error"].mean == 0.1
    assert table.metrics == ("sparse/error",)
    assert not any("later evaluations" in note for note in table.notes)


def test_of_several_evaluations_that_which_counted_most_is_taken_whole(tmp_path):
    folder = write_trained(tmp_path / "run", {"sparse/error": 0.1})
    write_evaluation(folder, {f"{LONG}/error": 0.2, f"{LONG}/other_error": 0.2}, name="a-1", n=10)
    write_evaluation(folder, {f"{LONG}/error": 0.3}, name="b-2", n=1000)
    write_evaluation(folder, {f"{LONG}/error": 0.4, f"{LONG}/other_error": 0.4}, name="c-3", n=100)
    row, _ = only_row(tmp_path, f"{LONG}/error")
    assert row.scores[f"{LONG}/error"].mean == 0.3
    assert f"{LONG}/other_error" not in row.runs[0].scores()


def test_only_the_weights_that_the_run_was_scored_with_count(tmp_path):
    folder = write_trained(tmp_path / "a", {"sparse/error": 0.1})
    write_evaluation(folder, {f"{LONG}/error": 0.2}, step=300)
    _, table = only_row(tmp_path)
    assert table.metrics == ("sparse/error",)
    best = {"record": {"evaluated/step": 300, "evaluated/checkpoint": "best"}}
    folder = write_trained(tmp_path / "best" / "b", {"sparse/error": 0.1}, **best)
    write_evaluation(folder, {f"{LONG}/error": 0.2}, step=300)
    row, _ = only_row(tmp_path / "best")
    assert row.scores[f"{LONG}/error"].mean == 0.2


def test_finished_sets_of_a_stopped_evaluation_count(tmp_path):
    folder = write_trained(tmp_path / "run", {"sparse/error": 0.1})
    write_evaluation(folder, {f"{LONG}/error": 0.2}, status="interrupted")
    assert only_row(tmp_path)[0].scores[f"{LONG}/error"].mean == 0.2


def test_a_run_that_failed_gains_nothing(tmp_path):
    folder = write_trained(tmp_path / "run", {}, status="failed")
    write_evaluation(folder, {f"{LONG}/error": 0.2})
    row, _ = only_row(tmp_path)
    assert row.n == 0
    assert row.scores == {}


def test_what_cannot_be_read_is_named_and_costs_the_run_nothing(tmp_path):
    folder = write_trained(tmp_path / "run", {"sparse/error": 0.1})
    write_evaluation(folder, {f"{LONG}/error": 0.2})
    for name, text in {"cut": '{"sta', "list": "[]", "bad": '{"evaluated/step": 600, "scores/x/error": "no"}'}.items():
        (folder / "evaluations" / f"{name}.json").write_text(text)
    (folder / "evaluations" / ".half.json.x1").write_text("{")
    (folder / "evaluations" / "lengths-1k-00000001.log").write_text("")
    comparison = compare([tmp_path])
    assert [run.folder.rsplit("/", 1)[1] for run in comparison.unreadable] == ["bad.json", "cut.json", "list.json"]
    assert comparison.tables[0].rows[0].scores[f"{LONG}/error"].mean == 0.2


def test_a_run_that_continues_another_stands_apart_from_one_of_that_length(tmp_path):
    write_seeds(tmp_path, "straight", [0.1, 0.2], trainer__max_steps=2000)
    write_seeds(tmp_path, "first", [0.3, 0.4], trainer__max_steps=600)
    write_seeds(tmp_path, "longer", [0.5, 0.6], trainer__max_steps=2000, continues="trainer.max_steps=600")
    (table,) = compare([tmp_path]).tables
    assert table.columns == ("trainer.max_steps", "continues")
    assert [(row.keys["continues"], row.n) for row in table.rows if row.keys["trainer.max_steps"] == 600] == [
        (None, 2)
    ]
    found = {row.keys["continues"]: row.n for row in table.rows if row.keys["trainer.max_steps"] == 2000}
    assert found == {None: 2, "trainer.max_steps=600": 2}
