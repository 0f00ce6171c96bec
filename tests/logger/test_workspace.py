"""The workspace of a report: what it asks W&B for, without W&B."""

from __future__ import annotations

import json

import pytest

from lcbench.cli import main
from lcbench.logger import workspace
from lcbench.results.report.content import sections_of
from lcbench.results.runs import read_runs
from tests.results.synthetic import ROPE, write_seeds

library = pytest.importorskip("wandb_workspaces.workspaces")


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_seeds(tmp_path / "outputs", "cope", [0.0, 0.1])
    write_seeds(tmp_path / "outputs", "rope", [0.5, 0.6], position=ROPE)
    return tmp_path / "outputs"


def test_offline_it_says_so_in_a_sentence(outputs, capsys):
    assert main(["report", "outputs", "--wandb"]) == 0
    said = capsys.readouterr().out
    assert "no workspace is made, as no key is configured; with one (wandb login), the same command makes it" in said
    assert not (outputs / workspace.FILE).exists()


def test_it_has_the_pages_panels(outputs):
    sections = sections_of(read_runs([outputs])[0])[1]
    made = workspace.workspace_of(library, sections, "me", "lcbench")
    asked = json.loads(made._to_model().model_dump_json())
    parts = asked["spec"]["section"]["panel_bank_config"]["sections"]
    assert [part["name"] for part in parts] == ["flip_flop", "configurations"]
    panels = parts[0]["panels"]
    assert [panel["view_type"] for panel in panels] == [
        "Bar Chart",
        "Run History Line Plot",
        "Run History Line Plot",
        "Scatter Plot",
    ]
    assert panels[0]["config"]["metrics"] == ["scores/sparse/error"]
    assert panels[0]["config"]["group_by"] == "position.value._target_"
    assert "flip_flop" in json.dumps(asked["spec"]["section"]["run_sets"])


def test_online_it_is_made_once_and_then_updated(outputs, monkeypatch, capsys):
    """With a server that remembers what it was told."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    told: list[dict] = []
    import wandb
    from wandb_workspaces.workspaces import internal

    class Account:
        default_entity = "me"

        class client:  # noqa: N801 the attribute that the library reads
            app_url = "https://wandb.ai"

    def upsert(view):
        told.append(json.loads(view.model_dump_json()))
        return {"upsertView": {"view": {"name": view.name, "id": view.id or "an-id"}}}

    class Server:
        @staticmethod
        def from_url(url):
            kept = library.Workspace(entity="me", project="lcbench", name="renamed by its reader")
            kept._internal_name, kept._internal_id = told[0]["name"], "an-id"
            return kept

    monkeypatch.setattr(wandb, "Api", Account)
    monkeypatch.setattr(internal, "upsert_view2", upsert)
    monkeypatch.setattr(wandb, "termlog", lambda *a, **k: None)
    monkeypatch.setattr(library.Workspace, "from_url", Server.from_url)
    assert main(["report", "outputs", "--wandb"]) == 0
    first = json.loads((outputs / workspace.FILE).read_text())["url"]
    assert first in capsys.readouterr().out
    assert main(["report", "outputs", "--wandb"]) == 0
    assert json.loads((outputs / workspace.FILE).read_text())["url"] == first
    assert [view["id"] for view in told] == ["", "an-id"]
    assert told[1]["display_name"] == "renamed by its reader"
    sections = [view["spec"]["section"]["panel_bank_config"]["sections"] for view in told]
    assert [[part["name"] for part in each] for each in sections] == 2 * [["flip_flop", "configurations"]]


def test_a_server_that_refuses_costs_only_the_workspace(outputs, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    import wandb

    def refuse():
        raise wandb.errors.CommError("no such user")

    monkeypatch.setattr(wandb, "Api", refuse)
    assert main(["report", "outputs", "--wandb"]) == 0
    assert "the server did not take it (no such user)" in capsys.readouterr().out
