"""The same sweep elsewhere: the same folders and the same scores, a failure alone, and the same ending."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path

import pytest
import yaml

from lcbench.errors import ConfigurationError
from lcbench.sweep import launchers
from lcbench.sweep.folder import last_words
from tests.conftest import TINY

#: two jobs, of which one diverges; steps and lengths so few that an import is most of a job
SWEEP = ("-m", *TINY, "position=none", "optimizer.lr=1e-3,1e30")


def records(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.rglob("result.json")}


def scores(folder: Path) -> dict[str, dict]:
    """By the run's folder, its scores or why it has none, to the last bit."""
    kept = {}
    for name, record in records(folder).items():
        kept[name] = {k: v for k, v in record.items() if k.startswith("scores/") or k in ("status", "error")}
    return kept


def assert_ends_as_it_should(done, folder: Path) -> None:
    shown = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 2 runs completed" in shown
    assert "flip_flop: 1 run, 1 configuration" in shown
    assert "optimizer.lr=1e+30 failed the loss is nan at step" in shown
    assert "Traceback" not in done.stdout + done.stderr
    found = records(folder)
    assert sorted(record["status"] for record in found.values()) == ["completed", "failed"]
    (failed,) = (record for record in found.values() if record["status"] == "failed")
    assert "last finite loss" in failed["error"]


@pytest.fixture
def single(run_here, tmp_path):
    """The same runs as single commands."""
    (folder := tmp_path / "single").mkdir()
    for lr in ("1e-3", "1e30"):
        run_here("position=none", f"optimizer.lr={lr}", f"outputs={folder}")
    return scores(folder)


def test_what_an_experiment_sweeps_over_yields_to_the_command_line(command, tmp_path):
    done = command("-m", "experiment=cope/flip_flop", *TINY, "task.length=8", "position=none,rope", "seed=7")
    assert "2 of 2 runs completed" in done.stdout, done.stdout + done.stderr
    assert {record["seed"] for record in records(tmp_path / "outputs").values()} == {7}


def test_this_machine(command, tmp_path, single):
    done = command(*SWEEP)
    assert_ends_as_it_should(done, tmp_path / "outputs")
    assert scores(tmp_path / "outputs") == single


def submitit_logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.glob("*/.submitit/*/*_log.*"))


def test_a_process_of_submitits(command, tmp_path, single):
    done = command(*SWEEP, "hydra/launcher=submitit_local")
    assert_ends_as_it_should(done, tmp_path / "outputs")
    assert scores(tmp_path / "outputs") == single
    assert submitit_logs(tmp_path / "outputs" / ".sweeps").count("Job completed successfully") == 2


def test_submitits_debug_executor(command, tmp_path, single):
    plugin = tmp_path / "hydra_plugins" / "lcbench_debug.py"
    plugin.parent.mkdir()
    plugin.write_text(
        "from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher\n"
        "class DebugLauncher(BaseSubmititLauncher):\n"
        "    _EXECUTOR = 'debug'\n"
    )
    path = ":".join([str(tmp_path), *sys.path])
    words = ["hydra/launcher=submitit_local", "hydra.launcher._target_=hydra_plugins.lcbench_debug.DebugLauncher"]
    done = command(*SWEEP, *words, PYTHONPATH=path)
    assert_ends_as_it_should(done, tmp_path / "outputs")
    assert scores(tmp_path / "outputs") == single


#: what submitit asks of SLURM: sbatch starts the array's tasks, srun a task, sacct tells their state
SBATCH = """\
#!{python}
import os, re, subprocess, sys
script = sys.argv[1]
text = open(script).read()
first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", text).groups())
open("batch.sh", "w").write(text)
for task in range(first, last + 1):
    job = {{"SLURM_JOB_ID": str(100 + task), "SLURM_ARRAY_JOB_ID": "99", "SLURM_ARRAY_TASK_ID": str(task),
           "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
           "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "1"}}
    with open(f"task{{task}}.out", "w") as out:
        subprocess.Popen(["bash", script], env={{**os.environ, **job}}, stdout=out, stderr=out, start_new_session=True)
print("Submitted batch job 99")
"""
SRUN = """\
#!{python}
import os, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words = words[2:] if words[0] in ("--output", "--error") else words[1:]
os.execvp(words[0], words)
"""
SACCT = """\
#!{python}
import glob
tasks = range(len(glob.glob("task*.out")))
done = [bool(glob.glob(f"outputs/.sweeps/*/submitit/**/99_{{task}}_0_result.pkl", recursive=True)) for task in tasks]
print("JobID|State|NodeList")
for task in tasks:
    print(f"99_{{task}}|{{'COMPLETED' if done[task] else 'RUNNING'}}|here")
"""


def test_a_slurm_array(command, tmp_path, single):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (programs / name).write_text(text.format(python=sys.executable))
        (programs / name).chmod(stat.S_IRWXU)
    words = ["hydra/launcher=slurm", "hydra.launcher.partition=long", "hydra.launcher.timeout_min=30"]
    done = command(*SWEEP, *words, PATH=f"{programs}:/usr/bin:/bin")
    assert_ends_as_it_should(done, tmp_path / "outputs")
    assert scores(tmp_path / "outputs") == single
    script = (tmp_path / "batch.sh").read_text()
    for line in ("--job-name=lcbench", "--partition=long", "--time=30", "--cpus-per-task=4", "--array=0-1%2"):
        assert f"#SBATCH {line}" in script
    assert "#SBATCH --signal=USR2@120" in script


def test_outside_a_cluster_slurm_is_refused_in_a_sentence(command):
    done = command(*SWEEP, "hydra/launcher=slurm", PATH="/nowhere")
    assert done.returncode == 2
    assert "no job could be started" in done.stderr
    assert "slurm cluster" in done.stderr
    assert "Traceback" not in done.stderr


def test_ray(command, tmp_path, single):
    done = command(*SWEEP, "hydra/launcher=ray", RAY_ADDRESS="")
    assert_ends_as_it_should(done, tmp_path / "outputs")
    assert scores(tmp_path / "outputs") == single


SEARCH = (
    "-m",
    *TINY,
    "position=none",
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=3",
    "optimizer.lr=tag(log, interval(1e-4, 1e-1))",
    "model.n_heads=choice(2, 3)",
)


def test_a_search_ends_with_its_trials_compared_and_repeats_none(command, tmp_path):
    done = command(*SEARCH)
    shown = " ".join(done.stdout.split())
    found = records(tmp_path / "outputs")
    completed = [record for record in found.values() if record["status"] == "completed"]
    assert len(found) == 3, done.stdout + done.stderr
    assert {record["config/model.n_heads"] for record in completed} == {2}
    assert f"{len(completed)} of 3 runs completed" in shown
    assert done.returncode == (0 if len(completed) == 3 else 1)
    best = min(completed, key=lambda record: record["scores/in_distribution/error"])
    assert f"with {best['scores/in_distribution/error']:.6g}" in shown
    (parameters,) = (tmp_path / "outputs" / ".sweeps").glob("*/optimization_results.yaml")
    lr = yaml.safe_load(parameters.read_text())["best_params"]["++optimizer.lr"]
    assert lr in [record["config/optimizer.lr"] for record in completed]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.csv")}
    assert done.stderr == ""
    again = command(*SEARCH)
    # what starts and ends is said before; the second time nothing does
    assert " ".join(again.stdout.split()) == shown[shown.index(f"{len(completed)} of 3 runs") :]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.csv")} == stamps


def test_a_search_in_a_database_goes_on(command, tmp_path):
    words = [word for word in SEARCH if not word.startswith(("model.n_heads", "hydra.sweeper.n_trials"))]
    stored = ["hydra.sweeper.storage=sqlite:///search.db", "hydra.sweeper.study_name=search"]
    for trials in (1, 2):
        done = command(*words, *stored, "hydra.sweeper.n_trials=1", "hydra.sweeper.sampler.seed=null")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{trials} of {trials} runs completed" in done.stdout
    assert (tmp_path / "search.db").exists()


@pytest.mark.parametrize(
    ("word", "extra"), [("launcher=slurm", "slurm"), ("launcher=ray", "ray"), ("sweeper=optuna", "optuna")]
)
def test_a_package_that_is_not_installed_is_said_in_a_sentence(word, extra, monkeypatch, tmp_path):
    monkeypatch.setattr(launchers, "is_installed", lambda module: False)
    with pytest.raises(ConfigurationError, match=rf"hydra/{word}: .* pip install 'lcbench\[{extra}\]'"):
        launchers.hydra_arguments(list(last_words([f"hydra/{word}", "seed=0,1"]).values()), tmp_path, tmp_path)


def test_what_is_not_there_is_not_installed():
    assert launchers.is_installed("hydra_plugins.hydra_ray_launcher")
    assert not launchers.is_installed("hydra_plugins.hydra_no_launcher")
    assert not launchers.is_installed("no_such_package.plugin")


def test_rerun_and_config_folders_reach_the_jobs(command, tmp_path):
    (tmp_path / "mine" / "task").mkdir(parents=True)
    source = Path(__file__).parents[2] / "conf" / "task" / "flip_flop.yaml"
    shutil.copy(source, tmp_path / "mine" / "task" / "my_flips.yaml")
    words = ["-m", "--config-dir", str(tmp_path / "mine"), *TINY, "task=my_flips", "position=none", "rerun=true"]
    for _ in range(2):
        done = command(*words, "trainer.max_steps=2", "seed=0")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 of 1 runs completed" in done.stdout
    assert "my_flips" in str(next((tmp_path / "outputs").rglob("result.json")))
