"""``lcbench compare`` as a user types it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from lcbench.cli import main
from tests.results.synthetic import ROPE, write_seeds


@pytest.fixture
def outputs(tmp_path):
    write_seeds(tmp_path / "outputs" / "flip_flop", "cope", [0.0, 0.005, 0.01])
    write_seeds(tmp_path / "outputs" / "flip_flop", "rope", [0.4, 0.5, 0.6], position=ROPE)
    return tmp_path / "outputs"


def test_real_runs_are_compared(run_here, tmp_path, capsys):
    for position in ("cope", "rope"):
        for seed in (0, 1):
            run_here(f"position={position}", f"seed={seed}", "trainer.max_steps=3")
    record = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert record["config/task._target_"] == "lcbench.task.flip_flop.FlipFlop"
    capsys.readouterr()
    assert main(["compare", str(tmp_path), "--against", "position=rope"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "flip_flop: 4 runs, 2 configurations"
    assert shown[1].split()[:3] == ["position", "seeds", "in_distribution/error"]
    assert [line.split()[:2] for line in shown[2:4]] == [["cope", "2"], ["rope", "2"]]
    assert "minus position=rope, over 2 common seeds" in shown


def test_it_needs_nothing_heavy(outputs):
    code = (
        "import sys; from lcbench.cli import main; assert main(['compare', sys.argv[1]]) == 0;"
        "heavy = {'torch', 'lightning', 'wandb', 'hydra', 'omegaconf', 'pydantic', 'yaml'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, str(outputs)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # through a pipe a row is a line, and plain
    assert [line.split()[0] for line in done.stdout.splitlines()[2:4]] == ["cope", "rope"]
    assert "\x1b" not in done.stdout


def test_options_reach_the_table_and_the_files(outputs, tmp_path, capsys):
    words = ["--csv", str(tmp_path / "a.csv"), f"--json={tmp_path / 'a.json'}", "--solved", "0.005", "--sort=-sparse"]
    assert main(["compare", str(outputs), *words, "--against", "position=rope", "--by", "position"]) == 0
    shown = capsys.readouterr()
    assert "solved: seeds with an error of at most 0.5 %" in shown.out
    assert f"written: {tmp_path / 'a.csv'}" in shown.err
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["position"] for row in rows] == ["rope", "cope"]
    assert float(rows[1]["sparse/error_solved"]) == pytest.approx(2 / 3)
    assert json.loads((tmp_path / "a.json").read_text())["against"] == {"position": "rope"}


def test_the_python_face_needs_one_import(outputs):
    code = "import sys, lcbench; print(lcbench.results.compare([sys.argv[1]]).tables[0].rows[0].n)"
    done = subprocess.run([sys.executable, "-c", code, str(outputs)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "3", done.stderr


def test_csv_and_json_can_stand_alone_on_the_standard_output(outputs, capsys):
    assert main(["compare", str(outputs), "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tables"][0]["rows"]) == 2
    assert main(["compare", str(outputs), "--csv=-"]) == 0
    assert [row["position"] for row in csv.DictReader(capsys.readouterr().out.splitlines())] == ["cope", "rope"]


def test_devices_and_links_are_not_replaced(outputs, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in (str(tmp_path / "link"), "/dev/null"):
        assert main(["compare", str(outputs), "--csv", name]) == 2
        assert "no ordinary file" in capsys.readouterr().err


MISTAKES = [
    ("", "compare", "lcbench compare outputs"),
    ("outputs --metric sparse/eror", "--metric sparse/eror", "closest is sparse/error"),
    ("outputs --by positon", "positon", "closest is position"),
    ("outputs --sort walltime", "--sort walltime", "closest is wall_seconds"),
    ("outputs --against position=rop", "position=rop", "closest is rope"),
    ("outputs --against rope", "--against rope", "position=rope"),
    ("outputs --against", "--against", "needs a value"),
    ("outputs --csv --json", "--csv", "needs a value"),
    ("outputs --metrc sparse", "--metrc", "closest is --metric"),
    ("outputs --sort sparse --sort position", "--sort", "twice"),
    ("outputs --solved 5", "5", "between 0 and 1"),
    ("outputs --solved some", "some", "between 0 and 1"),
    ("outputs --csv nowhere/a.csv", "--csv nowhere/a.csv", "no folder nowhere"),
    ("outputs --json - --csv -", "--csv -", "only one"),
    ("outputs --json outputs", "--json outputs", "name a file"),
    ("outputs nowhere", "nowhere", "no run"),
]


@pytest.mark.parametrize(("words", "names", "hint"), MISTAKES, ids=[words for words, _, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_exit_code_2(words, names, hint, outputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words.split()]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("lcbench: ")
    assert len(shown.err.strip().splitlines()) == 1
    assert names in shown.err
    assert hint in shown.err
    assert shown.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
