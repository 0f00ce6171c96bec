"""Studies: what they say of runs, and the record that is written."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from lcbench.cli import main
from lcbench.configs import choices_of, config_directory
from lcbench.errors import ConfigurationError
from lcbench.results.runs import read_runs
from lcbench.results.statistics import student_quantile, welch
from lcbench.results.study.definition import Study, read_study, studies_of
from lcbench.results.study.judge import findings
from lcbench.results.study.record import core_hours, readme, write_record
from tests.results.synthetic import ROPE, write_run, write_seeds

ALIBI = {"_target_": "lcbench.position.alibi.Alibi"}
LSTM = {"_target_": "lcbench.model.lstm.LSTM"}
REPOSITORY = Path(__file__).parents[2]


def study(**changes) -> Study:
    asked = {
        "claim": "cope errs less",
        "source": "a paper, table 1",
        "experiments": ["flip_flop"],
        "commands": ["lcbench -m experiment=flip_flop"],
        "rows": ["position"],
        "metrics": ["sparse/error"],
        "statements": [{"metric": "sparse/error", "of": {"position": "cope"}, "below": [{"position": "rope"}]}],
    }
    return Study.model_validate(asked | changes)


def judged(asked: Study, outputs: Path):
    return findings(asked, "mine/study", read_runs([outputs])[0])


@pytest.mark.parametrize(
    ("cope", "rope", "verdict", "of_study"),
    [
        ([0.0, 0.01, 0.02], [0.4, 0.5, 0.6], "holds", "holds"),
        ([0.4, 0.5, 0.6], [0.0, 0.01, 0.02], "contrary", "does not hold"),
        ([0.4, 0.5, 0.6], [0.45, 0.4, 0.62], "open", "does not hold"),
        # one common seed says nothing of others
        ([0.0], [0.9], "open", "does not hold"),
    ],
)
def test_a_comparison_holds_if_the_paired_interval_says_so(tmp_path, cope, rope, verdict, of_study):
    write_seeds(tmp_path, "cope", cope)
    write_seeds(tmp_path, "rope", rope, position=ROPE)
    found = judged(study(), tmp_path)
    assert [each.verdict for each in found.judged] == [verdict]
    assert found.verdict == of_study


def test_above_is_the_other_way_and_pairs_are_judged_one_by_one(tmp_path):
    write_seeds(tmp_path, "cope", [0.4, 0.5, 0.6])
    write_seeds(tmp_path, "rope", [0.0, 0.01, 0.02], position=ROPE)
    write_seeds(tmp_path, "alibi", [0.9, 0.91, 0.92], position=ALIBI)
    others = [{"position": "rope"}, {"position": "alibi"}]
    asked = study(statements=[{"metric": "sparse/error", "of": {"position": "cope"}, "above": others}])
    found = judged(asked, tmp_path)
    assert [each.verdict for each in found.judged] == ["holds", "contrary"]
    assert found.verdict == "holds partly"
    assert found.because.startswith(
        "1 of 2 statements hold. The contrary is measured of sparse/error: cope above alibi"
    )


def test_bounds_are_kept_by_the_whole_interval(tmp_path):
    write_seeds(tmp_path, "cope", [0.08, 0.1, 0.12])
    half = student_quantile(2) * 0.02 / 3**0.5
    for bound, verdicts in {
        0.2: ("holds", "contrary"),
        0.1 + half / 2: ("open", "open"),
        0.01: ("contrary", "holds"),
    }.items():
        both = {"at_most": bound, "at_least": bound}
        asked = study(statements=[{"metric": "sparse/error", "of": {"position": "cope"}, **both}])
        assert tuple(each.verdict for each in judged(asked, tmp_path).judged) == verdicts


def test_without_common_seeds_the_interval_is_welchs(tmp_path):
    write_seeds(tmp_path, "cope", [0.1, 0.2, 0.3])
    for seed, error in enumerate([0.5, 0.6, 0.8, 0.7]):
        write_run(tmp_path / f"rope-{seed}", {"sparse/error": error}, seed=10 + seed, position=ROPE)
    numbers = judged(study(), tmp_path).judged[0].numbers
    low, high = welch([0.1, 0.2, 0.3], [0.5, 0.6, 0.8, 0.7])
    assert numbers.endswith("Welch")
    assert f"({100 * low:.2f} to {100 * high:.2f} %)" in numbers


def test_welch_with_equal_variances_and_sizes_is_the_pooled_t():
    a, b = [0.0, 1.0, 2.0], [5.0, 7.0, 6.0]
    half = student_quantile(4) * (2 * 1.0 / 3) ** 0.5
    assert welch(a, b) == pytest.approx((-5 - half, -5 + half))
    # 1 / 3 and 16 / 3 as variances of the means: Satterthwaite's freedom by hand
    half = student_quantile((17 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (16 / 3) ** 2 / 2)) * (17 / 3) ** 0.5
    assert welch(a, [1.0, 5.0, 9.0]) == pytest.approx((-4 - half, -4 + half))
    assert welch([1.0, 1.0], [0.5, 0.5]) == (0.5, 0.5)


def test_without_runs_nothing_is_decided(tmp_path):
    write_seeds(tmp_path, "cope", [0.0, 0.01])
    write_run(tmp_path / "rope", {}, status="failed", position=ROPE)
    found = judged(study(), tmp_path)
    assert found.verdict == "undecided"
    assert found.judged[0].numbers == "no completed run of rope"


def test_the_search_is_not_in_the_comparison(tmp_path):
    """Rates are chosen on a seed of their own; runs of other seeds, rates and lengths of training are left out."""
    tuning = {"seeds": [100], "key": "optimizer.lr", "metrics": ["dense/error", "sparse/error"]}
    for lr, error in {0.001: 0.3, 0.01: 0.1, 0.1: 0.1}.items():
        errors = {"dense/error": error, "sparse/error": lr}
        write_run(tmp_path / f"search-{lr}", errors, seed=100, optimizer__lr=lr)
        write_run(tmp_path / f"longer-{lr}", errors, seed=100, optimizer__lr=lr, trainer__max_steps=9)
    for seed in (0, 1, 2):
        write_run(tmp_path / f"cope-{seed}", {"sparse/error": 0.01 * seed}, seed=seed, optimizer__lr=0.01)
    write_run(tmp_path / "other-rate", {"sparse/error": 0.9}, seed=0, optimizer__lr=0.5)
    write_run(tmp_path / "other-seed", {"sparse/error": 0.9}, seed=7, optimizer__lr=0.01)
    found = judged(study(seeds=[0, 1, 2], tuning=tuning), tmp_path)
    assert found.table.rows[0].scores["sparse/error"].mean == pytest.approx(0.01)
    assert found.tuned[0].best == ["0.01"], "a tie is broken by the next metric"
    assert found.tuned[0].used == ["0.01"]
    assert {Path(run.folder).name for run in found.searched} == {"search-0.001", "search-0.01", "search-0.1"}
    assert found.left_out == [
        "1 run of other seeds",
        "3 runs of the search that differ from the comparison's in more than it",
        "1 run with another value than the search's",
    ]


def test_runs_without_the_studys_values_are_left_out(tmp_path):
    write_seeds(tmp_path, "cope", [0.0, 0.01])
    write_seeds(tmp_path, "longer", [0.9, 0.9], trainer__max_steps=9)
    found = judged(study(where={"trainer.max_steps": 600}), tmp_path)
    assert found.table.rows[0].n == 2
    assert found.table.rows[0].scores["sparse/error"].mean == pytest.approx(0.005)
    assert found.left_out == ["2 runs without trainer.max_steps=600"]


def test_rows_of_several_experiments_are_one_table(tmp_path):
    write_seeds(tmp_path, "cope", [0.0, 0.01])
    write_seeds(tmp_path, "alibi", [0.1, 0.2], position=ALIBI)
    write_seeds(tmp_path, "lstm", [0.0, 0.0], model=LSTM, position=None, experiment="flip_flop_lstm")
    found = judged(study(experiments=["flip_flop", "flip_flop_lstm"], rows=["model", "position"]), tmp_path)
    assert sorted(found.labels) == ["alibi", "cope", "lstm"]


@pytest.fixture
def outputs(tmp_path):
    errors = {"cope": [0.0, 0.01, 0.02], "rope": [0.4, 0.5, 0.6]}
    for name, position in {"cope": None, "rope": ROPE}.items():
        for seed, error in enumerate(errors[name]):
            scores = {"sparse/error": error, "sparse/error/distance_1": error, "sparse/error/distance_2_3": error}
            changes = {"position": position} if position else {}
            record = {"machine/threads": 2, "cost/wall_seconds": 3600.0}
            write_run(tmp_path / "outputs" / f"{name}-{seed}", scores, seed=seed, record=record, **changes)
    return tmp_path / "outputs"


PAPER = {
    "note": "Other | sizes.",
    "rows": [
        {"name": "CoPE", "where": {"position": "cope"}, "scores": {"sparse/error": 0.049}},
        {"name": "absolute", "where": {"position": "absolute_learned"}, "scores": {"sparse/error": 0.217}},
    ],
}


def test_the_record_has_ours_beside_the_papers(tmp_path, outputs):
    found = judged(study(paper=PAPER, differs=["It is <smaller>."]), outputs)
    files = write_record(tmp_path / "record", "mine/study", found)
    assert [file.name for file in files] == ["README.md", "results.csv", "figure.svg"]
    text = files[0].read_text()
    cope, rope, absolute = (
        next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        for name in ("cope", "rope", "absolute")
    )
    assert "**1.00 %** (0.00 to 3.48 %, 2/3 solved) | 4.90 % |" in cope
    assert rope.endswith("not reported |")
    assert absolute == "| absolute | not run | not run | 21.70 % |"
    assert "**Verdict: holds.** 1 statement of 1." in text
    assert "lcbench -m experiment=flip_flop" in text
    assert "It is &lt;smaller>." in text
    assert core_hours(found.compared) == 12
    assert "12.0 core-hours (6 runs" in text
    lines = list(csv.DictReader(files[1].open()))
    assert [(line["position"], line["seeds"], line["paper"]) for line in lines] == [
        ("cope", "3", "0.049"),
        ("rope", "3", ""),
        ("absolute_learned", "0", "0.217"),
    ]
    assert lines[0]["values"] == "0:0 1:0.01 2:0.02"
    picture = files[2].read_text()
    assert picture.startswith("<svg")
    assert all(word in picture for word in ("cope", "rope", "distance to the write", "sparse: error"))


def test_every_table_in_a_record_is_one(tmp_path, outputs):
    """A name with a bar or a line break must not add cells."""
    shutil.rmtree(outputs / "rope-0")
    odd = {"_target_": "a|b\nc.D", "base": 1}
    write_run(outputs / "odd", {"sparse/error": 0.3}, position=odd)
    text = readme("mine/study", judged(study(paper=PAPER), outputs))
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_report_writes_records_and_the_page_shows_the_verdict(tmp_path, outputs, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "mine" / "study"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study(paper=PAPER).model_dump(exclude_none=True)))
    write_run(outputs / "elsewhere", {"sparse/error": 0.1}, experiment="another")
    assert main(["report", "outputs"]) == 0
    assert "experiments/mine/study/README.md: holds" in capsys.readouterr().out
    assert (folder / "figure.svg").exists()
    text = (tmp_path / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [section["title"] for section in data["sections"]] == ["mine/study (flip_flop)", "another (flip_flop)"]
    assert data["sections"][0]["study"]["verdict"] == "holds"
    assert data["sections"][0]["paper"] == [{"row": 0, "set": "sparse", "metric": "error", "value": 0.049}]
    assert data["sections"][1]["study"] is None


def test_a_record_is_kept_where_no_run_is_completed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "mine" / "study"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study().model_dump(exclude_none=True)))
    (folder / "README.md").write_text("earlier")
    write_run(tmp_path / "outputs" / "a", {}, status="running")
    assert main(["report", "outputs"]) == 0
    assert (folder / "README.md").read_text() == "earlier"
    assert "its record stays as it is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("claim: [", "cannot be read"),
        ("- claim", "is no study: not a table of keys and values"),
        ("claim: x\nsauce: y", "sauce: no such key; the closest is source."),
        ("claim: x", "source is missing."),
    ],
)
def test_a_broken_study_is_one_sentence(tmp_path, text, sentence):
    complete = yaml.safe_dump(study().model_dump(exclude_none=True))
    if "sauce" in text:
        text = complete + "sauce: y\n"
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        read_study(tmp_path / "study.yaml")


def test_a_statement_must_say_something():
    with pytest.raises(ValueError, match="says nothing"):
        study(statements=[{"metric": "sparse/error", "of": {"position": "cope"}}])


OURS = sorted((REPOSITORY / "experiments").rglob("study.yaml"))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.parent.name)
def test_our_studies_speak_of_what_there_is(path):
    found = read_study(path)
    known = choices_of("experiment", [config_directory()])
    assert set(found.experiments) <= set(known)
    assert found.commands == [f"lcbench -m experiment={name}" for name in found.experiments]
    assert path.read_text().startswith("# ")
    places = [row.where for row in found.paper.rows] + [statement.of for statement in found.statements]
    places += [other for statement in found.statements for other in (*statement.below, *statement.above)]
    for where in places:
        assert set(where) <= set(found.rows)
        if "position" in where:
            assert where["position"] in choices_of("position", [config_directory()])
    if found.tuning:
        assert not set(found.tuning.seeds) & set(found.seeds or [])
    assert studies_of([found.experiments[0]], REPOSITORY / "experiments")[path.parent] == found


def test_there_are_studies():
    assert OURS
