"""A sweep's name and its jobs' labels follow from the words, not from where or when it runs."""

from __future__ import annotations

import pytest

from lcbench.sweep.folder import SweepFolder, last_words, name_of


def name(*words: str) -> str:
    return name_of(last_words(words).values())


def test_a_name_says_what_varies_and_is_unique_to_what_is_computed():
    assert name("position=rope,cope", "seed=0,1", "task=counting").startswith("position-rope-cope_seed-0-1-")
    assert name("position=rope,cope", "seed=0,1") != name("position=rope,cope", "seed=0,1", "task=counting")
    assert name("experiment=cope/flip_flop", "seed=0,1") != name("seed=0,1")
    assert name("seed=0,1", "seed=2,3") == name("seed=2,3")
    assert name("hydra.sweeper.n_trials=3") != name("hydra.sweeper.n_trials=4")


@pytest.mark.parametrize(
    "words",
    [
        ["seed=0,1", "position=rope,cope"],
        ["position=rope,cope", "seed=0,1", "retry=true", "rerun=true"],
        ["position=rope,cope", "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partition=long"],
        ["position=rope,cope", "seed=0,1", "outputs=elsewhere", "logger=none"],
        ["++position=rope,cope", "+seed=0,1"],
    ],
)
def test_order_place_and_launcher_do_not_change_it(words):
    assert name(*words) == name("position=rope,cope", "seed=0,1")


def test_jobs_are_listed_once_and_labelled_by_what_is_not_fixed(tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin("group", {"task", "model.d_model"})
    folder.add(["++task=counting", "++position=rope", "++seed=0"])
    folder.add(["task=counting", "position=rope", "seed=0"], tmp_path / "run")
    folder.add(["++task=counting", "++position=rope", "++seed=0"])
    (job,) = folder.read()
    assert job.overrides == ["task=counting", "position=rope", "seed=0"]
    assert job.run == tmp_path / "run"
    assert folder.label(["++task=counting", "++position=rope", "seed=0"]) == "position=rope seed=0"
    assert SweepFolder(tmp_path / "sweep").group == "group"
