"""Sweeps in Weights & Biases: ours are groups with a closing table, and an agent's runs are the agent's."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from wandb import wandb_agent

from lcbench.configs import config_directory
from lcbench.logger.base import SweepFacts
from lcbench.logger.wandb import WandB
from lcbench.results.compare import compare
from lcbench.results.comparison import Comparison
from lcbench.results.export import as_lines
from tests.conftest import TINY
from tests.logger.test_wandb import inspect, no_account  # noqa: F401

WORDS = [word for word in TINY if not word.startswith("logger")]


def binaries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.wandb"))


def page(binary: Path) -> dict:
    """The run's own record: what W&B groups and finds it by."""
    records = [json.loads(line) for line in inspect(binary).splitlines()]
    return next(record["run"] for record in records if record["type"] == "run")


def test_a_sweep_is_a_group_and_its_jobs_are_named_by_what_differs(command, tmp_path):
    agent = {"WANDB_SWEEP_ID": "agents", "WANDB_RUN_ID": "agents-own-run", "WANDB_SWEEP_PARAM_PATH": "/nowhere"}
    done = command("-m", *WORDS, "trainer.max_steps=2", "position=none,rope", "tags=[mine]", **agent)
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = (tmp_path / "outputs" / ".sweeps").iterdir()
    pages = [page(binary) for binary in binaries(tmp_path / "outputs")]
    assert sorted(found["display_name"] for found in pages) == ["position=none", "position=rope"]
    for found in pages:
        assert found["run_group"] == sweep.name
        assert found["job_type"] == "train"
        assert found["display_name"] in found["tags"]
        assert {"mine", "task=flip_flop", "model=decoder", "attention=full"} <= set(found["tags"])
        # within an agent's run the sweep's jobs are runs of their own
        assert found["run_id"] != "agents-own-run"
        assert not found.get("sweep_id")


def test_a_continued_run_keeps_its_group_and_name(run_here, no_account, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_RUN_GROUP", "my sweep")
        patch.setenv("WANDB_NAME", "seed=0")
        failed, folder, _ = run_here("logger=wandb", "optimizer.lr=1e30")
    assert failed["status"] == "failed"
    run_here("logger=wandb", "optimizer.lr=1e30")
    first, second = (page(binary) for binary in binaries(folder))
    for key in ("run_id", "run_group", "display_name", "job_type"):
        assert first[key] == second[key]
    assert (second["run_group"], second["display_name"]) == ("my sweep", "seed=0")


@pytest.fixture
def agent(no_account, monkeypatch, tmp_path):  # noqa: F811
    """Starts a run as W&B's agent does, with the sweep file's command; returns its exit code."""
    sweep = yaml.safe_load((config_directory().parent / "sweeps" / "wandb.yaml").read_text())
    for name, value in {"WANDB_SWEEP_ID": "s4711", "WANDB_DIR": str(tmp_path), "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    # the agent itself sets these two
    monkeypatch.setenv("WANDB_RUN_ID", "")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    def start(run_id: str, **chosen: object) -> int:
        running = wandb_agent.Agent.__new__(wandb_agent.Agent)
        running._sweep_command = [*sweep["command"], *WORDS]
        running._function, running._run_processes = None, {}
        running._in_jupyter, running._forward_signals = False, False
        parameters = {key: {"value": chosen.get(key, node.get("value"))} for key, node in sweep["parameters"].items()}
        running._command_run({"run_id": run_id, "program": sweep["program"], "args": parameters})
        return running._run_processes[run_id].wait(timeout=120)

    return start


def test_a_run_that_an_agent_starts_is_the_agents(agent, tmp_path):
    assert agent("a1", position="rope", **{"optimizer.lr": 0.002}) == 0
    (folder,) = (tmp_path / "outputs" / "flip_flop").iterdir()
    (binary,) = binaries(folder)
    found = page(binary)
    assert (found["run_id"], found["sweep_id"]) == ("a1", "s4711")
    config = json.loads(inspect(binary, "--summary"))["config"]
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert config == {**resolved, "optimizer.lr": 0.002}
    assert resolved["position"]["_target_"] == "lcbench.position.rope.Rope"
    # asked for once more, the agent has its answer, and nothing is trained
    stamp = (folder / "metrics.csv").stat().st_mtime_ns
    assert agent("a2", position="rope", **{"optimizer.lr": 0.002}) == 0
    assert (folder / "metrics.csv").stat().st_mtime_ns == stamp
    (again,) = set(binaries(folder)) - {binary}
    assert (page(again)["run_id"], page(again)["sweep_id"]) == ("a2", "s4711")
    summary = json.loads(inspect(again, "--summary"))["summary"]
    metric = "scores/in_distribution/error"
    assert summary[metric] == pytest.approx(json.loads((folder / "result.json").read_text())[metric])


@pytest.fixture
def comparison(run_here, tmp_path):
    for position in ("none", "rope"):
        run_here(f"position={position}", "trainer.max_steps=2")
    return compare([tmp_path])


def test_the_closing_run_holds_the_comparison(comparison, no_account, tmp_path):  # noqa: F811
    facts = SweepFacts(tmp_path / "sweep", "position-none-rope-1a2b3c4d", ["mine"])
    facts.folder.mkdir()
    logger = WandB()
    logger.log_comparison(facts, comparison, "offline")
    logger.log_comparison(facts, comparison, "offline")
    first, second = map(page, binaries(facts.folder))
    assert first["run_id"] == second["run_id"]
    assert (first["run_group"], first["job_type"], first["tags"]) == (facts.group, "compare", ["mine"])
    table = json.loads(next(facts.folder.rglob("*.table.json")).read_text())
    names, lines = as_lines(comparison)
    assert table["columns"] == names
    assert table["data"] == lines
    assert [line[names.index("position")] for line in lines] == ["none", "rope"]


@pytest.mark.parametrize(
    ("mode", "variable", "key", "logged"),
    [
        (None, None, False, False),
        (None, None, True, True),
        ("online", None, False, True),
        ("offline", None, True, False),
        (None, "disabled", True, False),
        (None, "online", False, True),
    ],
)
def test_the_comparison_is_logged_only_online(mode, variable, key, logged, no_account, monkeypatch, tmp_path):  # noqa: F811
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    asked = []
    logger = WandB(mode=mode)
    monkeypatch.setattr(logger, "log_comparison", lambda facts, comparison, mode: asked.append(mode) or "logged")
    said = logger.finish_sweep(SweepFacts(tmp_path, "group", []), Comparison((), (), 0.01, {}))
    assert (said, asked) == (("logged", ["online"]) if logged else (None, []))
