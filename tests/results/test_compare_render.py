"""The table on a terminal, through a pipe, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from rich.console import Console

from lcbench.results import compare
from lcbench.results.export import as_csv, as_json
from lcbench.results.render import render
from tests.results.synthetic import ROPE, write_run, write_seeds

SETS = ("in_distribution", "sparse", "dense", "sparse_length_4x")


@pytest.fixture
def runs(tmp_path):
    for position, base in {"cope": 0.1, "rope": 0.4}.items():
        for seed in range(3):
            errors = {f"{name}/error": base + 0.01 * seed for name in SETS}
            change = {"position": ROPE} if position == "rope" else {}
            write_run(tmp_path / f"{position}-{seed}", errors, seed=seed, **change)
    write_run(tmp_path / "cope-3", {}, status="failed", seed=3)
    return tmp_path


def text_of(comparison, width, **console) -> str:
    screen = io.StringIO()
    render(comparison, Console(file=screen, width=width, highlight=False, **console))
    return screen.getvalue()


def test_a_wide_console_has_a_line_a_row_with_everything(runs):
    lines = text_of(compare([runs]), 1000).splitlines()
    header, cope, rope = lines[1:4]
    for name in SETS:
        assert f"{name}/error" in header
    for words in ("position", "seeds", "95 % interval", "median", "solved", "parameters", "tokens/s", "FLOP"):
        assert words in header
    # t of two degrees of freedom times 0.01 / sqrt(3) is 0.0248
    assert cope.split()[:2] == ["cope", "3"]
    assert "11.00 % *" in cope
    assert "8.52 to 13.48" in cope
    assert "3.0 MiB" in cope
    assert "0/3" in cope
    assert "1 failed" in cope
    assert "41.00 %" in rope
    assert "*" not in rope


def test_80_columns_hold_the_scores_and_say_what_they_do_not_hold(runs):
    text = text_of(compare([runs], against={"position": "rope"}), 80)
    assert max(map(len, text.splitlines())) <= 80
    joined = " ".join(text.split())
    assert (
        "left out at 80 columns: FLOP, wall time, peak memory, tokens/s, parameters, median, not completed" in joined
    )
    assert text.count("8.52 to 13.48") == len(SETS)
    assert "…" not in text
    assert "better" in text


def test_one_metric_keeps_what_fits_beside_it(runs):
    text = text_of(compare([runs], metrics=["sparse"]), 80)
    assert "left out at 80 columns: FLOP" in text
    cope = next(line for line in text.splitlines() if line.startswith("cope"))
    assert "11.00 % *" in cope
    assert "8.52 to 13.48" in cope


def test_a_narrow_terminal_keeps_one_metric(runs):
    text = text_of(compare([runs]), 40)
    assert "in_distribution" not in text.split("left out")[0].replace("in_\n", "")
    assert "8.52 to 13.48" in text
    assert "sparse_length_4x/error" in " ".join(text.split())


def test_many_keys_become_one_column_of_overrides(tmp_path):
    for i in (1, 2):
        model = {"_target_": "lcbench.model.decoder.Decoder", "d_model": 64 * i, "n_layers": i}
        trainer = {"_target_": "lcbench.engine.settings.Trainer", "max_steps": 100 * i, "batch_size": 8 * i}
        optimizer = {"_target_": "lcbench.optimizer.adamw.AdamW", "lr": 0.1 * i, "weight_decay": 0.01 * i}
        write_run(tmp_path / str(i), {"sparse/error": 0.1}, model=model, trainer=trainer, optimizer=optimizer)
    text = text_of(compare([tmp_path]), 80)
    assert "model.d_model=64 model.n_layers=1" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_best_is_bold_on_a_terminal_and_marked_without_colours(runs):
    comparison = compare([runs], metrics=["sparse"])
    coloured = text_of(comparison, 200, force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[1m *11\.00 % \*", coloured)
    assert not re.search(r"\x1b\[1m *41\.00 %", coloured)
    plain = text_of(comparison, 200)
    assert "\x1b" not in plain
    assert "11.00 % *" in plain
    assert "* best: its interval overlaps no other's" in plain


def test_names_are_not_taken_for_markup(tmp_path):
    write_run(tmp_path / "a", {"s/error": 0.1}, experiment="[bold]mine[/bold]", task__length="[red]")
    write_run(tmp_path / "b", {"s/error": 0.1}, experiment="[bold]mine[/bold]")
    text = text_of(compare([tmp_path]), 200)
    assert "[bold]mine[/bold]" in text
    assert "[red]" in text


def test_unreadable_runs_are_named_below(runs):
    (runs / "cope-0" / "result.json").write_text("{")
    assert f"skipped {runs / 'cope-0'}: result.json cannot be read" in text_of(compare([runs]), 80)


def test_csv_is_complete(runs):
    rows = list(csv.DictReader(io.StringIO(as_csv(compare([runs], against={"position": "rope"})))))
    assert [row["position"] for row in rows] == ["cope", "rope"]
    cope = rows[0]
    assert float(cope["dense/error_mean"]) == pytest.approx(0.11)
    assert float(cope["dense/error_low"]) == pytest.approx(0.0852, abs=1e-4)
    assert float(cope["dense/error_median"]) == pytest.approx(0.11)
    assert (cope["seeds"], cope["runs"], cope["failed"], cope["dense/error_n"]) == ("3", "4", "1", "3")
    assert (cope["dense/error_solved"], cope["dense/error_mark"]) == ("0.0", "*")
    assert float(cope["dense/error_difference"]) == pytest.approx(-0.3)
    assert (cope["dense/error_difference_n"], cope["dense/error_verdict"]) == ("3", "better")
    assert (cope["parameters"], cope["train_flops"]) == ("1000", "5000000000")
    assert rows[1]["dense/error_difference"] == ""


def test_json_is_complete_and_strict(runs):
    # an interval that is not known
    write_run(runs / "new", {"sparse/error": 0.5}, task__length=9, record={"scores/sparse/error_low": None})

    def refuse(word):
        raise AssertionError(word)

    comparison = compare([runs], metrics=["sparse"], against={"position": "rope", "task.length": "64"})
    data = json.loads(as_json(comparison), parse_constant=refuse)
    (table,) = data["tables"]
    rows = {(row["keys"]["task.length"], row["keys"]["position"]): row for row in table["rows"]}
    assert rows[9, "cope"]["scores"]["sparse/error"]["low"] is None
    row = rows[64, "cope"]
    assert [v["seed"] for v in row["scores"]["sparse/error"]["values"]] == [0, 1, 2]
    assert row["scores"]["sparse/error"]["values"][2]["value"] == pytest.approx(0.12)
    assert row["differences"]["sparse/error"]["verdict"] == "better"
    assert len(row["folders"]) == 4
    assert row["incomplete"] == {"failed": 1}
    assert rows[64, "rope"]["baseline"] is True


def test_a_perplexity_is_no_percentage(tmp_path):
    write_seeds(tmp_path, "a", [12.5, 13.5], score="s/perplexity")
    text = text_of(compare([tmp_path], metrics=["s/perplexity"]), 200)
    row = text.splitlines()[2]
    assert row.split()[:2] == ["2", "13"]
    assert "%" not in row
