"""The wheel, installed in an environment of its own and used from another folder."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from lcbench.configs import config_directory
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An empty environment with the wheel; dependencies are read from the one the tests run in."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    words = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    # a plain path: the .pth files there, the editable lcbench among them, are not read
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_every_config_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert {name.removeprefix("lcbench/conf/") for name in names if name.endswith(".yaml")} == configs
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "hydra_plugins/lcbench_local.py" in names
    assert not any(name.startswith(("tests/", "conf/")) for name in names)


def test_an_editable_install_reads_the_checkout():
    assert config_directory() == ROOT / "conf"


def test_the_installed_wheel_runs_from_another_folder(installed, tmp_path):
    where = "import lcbench.configs as c; print(c.config_directory())"
    found = subprocess.run(
        [installed / "python", "-c", where], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert Path(found.stdout.strip()).is_relative_to(installed.parent)
    done = subprocess.run(
        [installed / "lcbench", *TINY, "experiment=cope/flip_flop", "trainer.max_steps=2"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert record["status"] == "completed"
    assert record["versions/lcbench"] == "0.1.0"
    assert "git/commit" not in record
