"""``lcbench report``: what the page holds, and what it says where it cannot be made."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser

import pytest

from lcbench.cli import main
from lcbench.results.report.content import section_of, sections_of
from lcbench.results.report.curves import POINTS, curves_of
from lcbench.results.report.names import group_of, row_labels
from lcbench.results.runs import read_runs
from tests.results.synthetic import ROPE, write_run, write_seeds

EVIL = '</script><img src=x onerror="document.title=1">'
LSTM = {"_target_": "lcbench.model.lstm.LSTM"}


class Parts(HTMLParser):
    """The tags of a page, and what stands in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


@pytest.fixture
def reported(tmp_path, monkeypatch, capsys):
    """The page of the runs below tmp_path/outputs, as its parts."""
    monkeypatch.chdir(tmp_path)

    def report(*words: str) -> tuple[str, Parts, dict]:
        assert main(["report", "outputs", *words]) == 0
        text = (tmp_path / "report.html").read_text()
        parts = Parts(text)
        return text, parts, json.loads(parts.scripts[0])

    return report


def test_the_page_is_one_file_that_asks_for_nothing(tmp_path, reported):
    write_seeds(tmp_path / "outputs", "cope", [0.0, 0.1])
    text, parts, data = reported()
    assert [tag for tag, _ in parts.tags if tag in ("link", "img", "iframe", "base", "object")] == []
    assert not any("src" in attributes or "href" in attributes for _, attributes in parts.tags)
    assert "@import" not in text.split("<script")[0]
    assert "url(" not in text.split("<script")[0]
    assert len(parts.scripts) == 3
    assert data["sections"][0]["scores"]["mean"] == [0.05]
    assert data["sections"][0]["seeds"]["value"] == [0.0, 0.1]


def test_no_text_of_a_run_becomes_html(tmp_path, reported):
    cost = {"position": {"_target_": EVIL, "<b>&amp;": EVIL}, "experiment": EVIL}
    write_run(tmp_path / "outputs" / "one", {"sparse/error": 0.1}, **cost)
    write_run(tmp_path / "outputs" / "two", {"sparse/error": 0.2}, experiment=EVIL)
    failed = {"error": EVIL}
    write_run(tmp_path / "outputs" / "three", {}, status="failed", experiment=EVIL, seed=1, record=failed)
    (tmp_path / "outputs" / "<img onerror=alert(1)>").mkdir()
    (tmp_path / "outputs" / "<img onerror=alert(1)>" / "result.json").write_text("no record")
    text, parts, data = reported()
    assert not [tag for tag, _ in parts.tags if tag in ("img", "b")]
    assert len(parts.scripts) == 3, "no text may end a script"
    # the texts arrive as they are
    assert data["sections"][0]["title"].startswith(EVIL)
    assert any(run["error"] == EVIL for run in data["sections"][0]["runs"])
    assert EVIL in {key["values"][0] for key in data["sections"][0]["differences"]} | {
        key["values"][1] for key in data["sections"][0]["differences"]
    }
    assert EVIL not in text


def test_what_a_text_stands_in_for_is_not_searched_again(tmp_path, reported):
    write_run(tmp_path / "outputs" / "one", {"sparse/error": 0.1}, experiment="{{data}} {{library}}")
    _, parts, data = reported()
    assert len(parts.scripts) == 3
    assert data["sections"][0]["title"].startswith("{{data}} {{library}}")


def test_lengths_groups_and_unknown_numbers(tmp_path, reported):
    errors = {"sparse/error": 0.1, "sparse_length_4x/error": 0.4, "dense/error": 0.2}
    errors |= {"sparse/error/distance_1": 0.0, "sparse/error/distance_2_3": 0.25}
    for seed in (0, 1):
        write_run(tmp_path / "outputs" / str(seed), errors, seed=seed, record={"scores/dense/error_low": None})
    section = reported()[2]["sections"][0]
    # dense has one length, so it is no curve
    assert section["lengths"]["base"] == ["sparse", "sparse"]
    assert section["lengths"]["tokens"] == [64, 256]
    assert section["groups"]["group"] == ["1", "2-3"]
    assert section["groups"]["axis"] == ["distance", "distance"]
    assert section["sets"] == ["sparse", "sparse_length_4x", "dense"]
    assert None in section["scores"]["low"]


def test_curves_are_thinned_and_a_broken_line_is_left_out(tmp_path):
    header = "step,seconds,tokens,tokens_per_second,learning_rate,loss,evaluation_error\n"
    for seed, level in enumerate((1.0, 3.0)):
        write_run(tmp_path / str(seed), {"sparse/error": 0.1}, seed=seed)
        lines = [f"{step},1,1,1,1,{level},{level / 10 if step % 100 == 0 else ''}\n" for step in range(10, 1010, 10)]
        (tmp_path / str(seed) / "metrics.csv").write_text(header + "".join(lines) + "1010,1,")
    write_run(tmp_path / "none", {"sparse/error": 0.1}, seed=2)
    points = curves_of(read_runs([tmp_path])[0])
    losses = [point for point in points if point.quantity == "loss"]
    assert len(losses) == POINTS
    assert {(point.mean, point.low, point.high) for point in losses} == {(2.0, 1.0, 3.0)}
    assert [point.step for point in losses] == list(range(20, 1001, 20))
    errors = [point for point in points if point.quantity == "evaluation_error"]
    assert [point.step for point in errors] == list(range(100, 1001, 100))
    assert errors[0].mean == pytest.approx(0.2)


def test_names_of_groups():
    assert (group_of("distance_4_7").axis, group_of("distance_4_7").label) == ("distance", "4-7")
    assert (group_of("output_16").first, group_of("output_16").last) == (16, 16)
    assert group_of("token") is None


def test_rows_have_short_names_that_differ(tmp_path):
    write_run(tmp_path / "a", {"sparse/error": 0.1})
    write_run(tmp_path / "b", {"sparse/error": 0.1}, position=ROPE)
    write_run(tmp_path / "c", {"sparse/error": 0.1}, model=LSTM, position=None)
    table = sections_of(read_runs([tmp_path])[0])[1][0].table
    assert sorted(row_labels(table.rows, table.columns)) == ["cope", "lstm", "rope"]
    write_run(tmp_path / "d", {"sparse/error": 0.1}, position=ROPE, optimizer__lr=0.01)
    section = sections_of(read_runs([tmp_path])[0])[1][0]
    assert sorted(section.labels) == ["cope lr=0.001", "lstm lr=0.001", "rope lr=0.001", "rope lr=0.01"]
    assert section_of(section.table).labels == section.labels


MAPS = {
    "run": "one",
    "step": 600,
    "set": "sparse",
    "example": 3,
    "figure": None,
    "tokens": ["w", EVIL, "r"],
    "scored": [False, False, True],
    "queries": [1, 2],
    "layers": [[{"weights": [[0.25, 0.75], [0.1, 0.2, 0.7]], "gates": [[1, 0], [1, 0, 1]]}]],
}


def test_maps_are_shown_of_one_run_a_row_and_broken_ones_are_named(tmp_path, reported):
    for seed in (0, 1):
        write_run(tmp_path / "outputs" / f"cope-{seed}", {"sparse/error": 0.1}, seed=seed)
        (tmp_path / "outputs" / f"cope-{seed}" / "maps.json").write_text(json.dumps(MAPS))
    broken = {
        "rope": "{",
        "alibi": json.dumps(MAPS | {"queries": [1, 3]}),
        "relative": json.dumps(MAPS | {"queries": [0, 2]}),
    }
    for name, text in broken.items():
        write_run(tmp_path / "outputs" / name, {"sparse/error": 0.1}, position={"_target_": f"{name}.A"})
        (tmp_path / "outputs" / name / "maps.json").write_text(text)
    _, parts, data = reported()
    assert len(parts.scripts) == 3
    (maps,) = data["sections"][0]["maps"]
    assert (maps["seed"], maps["tokens"], maps["layers"]) == (0, MAPS["tokens"], MAPS["layers"])
    unreadable = {run["folder"]: run["reason"] for run in data["unreadable"]}
    assert set(unreadable) == {f"outputs/{name}/maps.json" for name in broken}
    assert "a query lies outside of the example" in unreadable["outputs/alibi/maps.json"]
    assert "not those of the keys up to each query" in unreadable["outputs/relative/maps.json"]


def test_options_and_mistakes(tmp_path, reported, capsys):
    write_seeds(tmp_path / "outputs", "cope", [0.0, 0.5])
    write_seeds(tmp_path / "outputs", "rope", [0.0, 0.5], position=ROPE)
    _, _, data = reported("--solved=0.5", "--against", "position=rope")
    assert data["solved"] == 0.5
    assert data["sections"][0]["scores"]["difference"] == [0.0, None]
    capsys.readouterr()
    for words, sentence in {
        "report": "report takes folders of runs",
        "report outputs --outptu x": "--outptu: report has no such option; the closest is --output.",
        "report outputs --output": "--output needs a value, such as --output report.html.",
        "report outputs --output nowhere/x.html": "there is no folder nowhere",
        "report nothing": "nothing is no run and holds none",
    }.items():
        assert main(words.split()) == 2
        assert sentence in capsys.readouterr().err


def test_without_altair_a_sentence_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "altair", None)
    write_run(tmp_path / "outputs" / "a", {"sparse/error": 0.1})
    assert main(["report", "outputs"]) == 2
    assert "pip install 'lcbench[report]'" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
