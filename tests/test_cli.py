"""The command as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lcbench.cli import main
from lcbench.completion import complete, script
from lcbench.configs import choices_of, config_directory
from tests.conftest import TINY


def test_help_needs_nothing_heavy():
    code = (
        "import sys; from lcbench.cli import main; main(['--help']); main(['list']);"
        "heavy = {'torch', 'lightning', 'wandb', 'hydra', 'omegaconf', 'numpy', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "lcbench verify" in done.stdout


def test_list_has_a_line_for_everything(capsys):
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    assert main(["list", "position"]) == 0
    positions = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in positions] == list(choices_of("position", [config_directory()]))
    assert all(len(line.split()) > 3 for line in positions)
    assert all(line in everything for line in positions)


def test_list_finds_a_users_own_files(capsys, tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("# my own task\n")
    assert main(["--config-dir", str(tmp_path), "list", "task"]) == 0
    assert "my own task" in capsys.readouterr().out


def test_show_prints_config_and_cost_and_leaves_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["show", "experiment=cope/counting_paper"]) == 0
    shown = capsys.readouterr().out
    for words in ("lcbench.task.counting.Counting", "parameters", "15,700 steps", "FLOP", "activations", "p_max: 513"):
        assert words in shown
    assert list(tmp_path.iterdir()) == []


def test_a_run_ends_with_table_folder_and_three_commands(command, tmp_path):
    done = command(*TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("in_distribution", "sparse_length_4x", "95 % interval", "wrong / counted", "chance", "tokens/s"):
        assert words in done.stdout
    folder = next((tmp_path / "outputs" / "flip_flop").iterdir())
    assert f"outputs/flip_flop/{folder.name}" in done.stdout
    suggested = done.stdout.split("worth trying next")[1].strip().splitlines()
    assert len(suggested) == 3
    for line in suggested:
        words = line.split("#")[0].split()[1:]
        assert main(["show", *[word for word in words if word != "show"]]) == 0
    again = command(*TINY)
    assert again.returncode == 0
    assert "finished" in again.stdout
    shown = command("show", f"outputs/flip_flop/{folder.name}")
    assert "in_distribution" in shown.stdout


def test_a_failed_run_exits_with_1(command, tmp_path):
    done = command(*TINY, "optimizer.lr=1e30", "trainer.max_steps=30")
    assert done.returncode == 1
    assert "last finite loss" in done.stdout.replace("\n", " ")
    record = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert record["status"] == "failed"


def test_outputs_can_be_moved_by_a_variable(command, tmp_path):
    assert command(*TINY, "trainer.max_steps=2", LCBENCH_OUTPUTS=str(tmp_path / "there")).returncode == 0
    assert list((tmp_path / "there" / "flip_flop").glob("*/result.json"))


def test_doctor_reports(capsys):
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    for words in ("processor", "memory", "torch", "threads", "accelerator", "W&B"):
        assert words in report


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lcbench do", ["doctor"]),
        ("lcbench position=al", ["position=alibi"]),
        ("lcbench optimizer.l", ["optimizer.lr="]),
        ("lcbench optimizer=adam optimizer.cl", ["optimizer.clip_norm="]),
        ("lcbench list obj", ["objective"]),
        ("lcbench model=lstm model.n_h", []),
        ("lcbench model.n_h", ["model.n_heads="]),
        ("lcbench position=rope position.ba", ["position.base="]),
        ("lcbench see", ["seed="]),
        ("lcbench nonsense=x", []),
        ("lcbench cost --le", ["--lengths="]),
        ("lcbench report --o", ["--output="]),
        ("lcbench cost --m", ["--model", "--memory"]),
        ("lcbench cost attention=full,lin", ["attention=full,linear"]),
    ],
)
def test_completion(line, expected):
    assert complete([line]) == expected


def test_completion_works_in_a_real_bash(tmp_path):
    (tmp_path / "lcbench").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lcbench "$@"\n')
    (tmp_path / "lcbench").chmod(0o755)
    program = f"""{script("bash")}
COMP_LINE="lcbench position=al"; COMP_POINT=${{#COMP_LINE}}
_lcbench 2>/dev/null
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.stdout.strip() == "alibi", done.stderr


def test_the_python_face(tmp_path):
    import torch

    import lcbench
    from lcbench.attention.base import Context

    layer = lcbench.build_attention("full", d_model=16, n_heads=2, position={"name": "rope", "base": 100.0})
    assert layer.position.base == 100.0
    y = layer(torch.zeros(1, 3, 16), Context(positions=torch.arange(3)[None])).y
    assert y.shape == (1, 3, 16)
    model = lcbench.build_model([*TINY, "seed=1"])
    again = lcbench.build_model([*TINY, "seed=1"])
    other = lcbench.build_model([*TINY, "seed=2"])
    weights = [next(m.parameters()) for m in (model, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert "position" in lcbench.compose(["position=rope"]).config
    assert Path(tmp_path).exists()
