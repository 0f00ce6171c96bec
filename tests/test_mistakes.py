"""A user's mistake: one sentence with the key, the value and the closest valid choice, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcbench.cli import main

MISTAKES = [
    # misspelt
    ("position=cop", "position=cop", "closest is cope"),
    ("model.n_layer=2", "model.n_layer=2", "closest is model.n_layers"),
    ("modl.n_layers=2", "modl.n_layers=2", "closest is model"),
    ("sed=1", "sed=1", "closest is seed"),
    ("experiment=cope/flipflop", "experiment=cope/flipflop", "closest is cope/flip_flop"),
    ("trainer.precision=bf16", "trainer.precision=bf16", "closest is bf16-mixed"),
    ("evaluation.sets=[spars]", "spars", "sparse"),
    ("position.p_mx=9", "position.p_mx=9", "closest is position.p_max"),
    # wrong type or range
    ("model.n_layers=two", "model.n_layers=two", "integer"),
    ("model.n_layers=2.5", "model.n_layers=2.5", "integer"),
    ("model.n_layers=true", "model.n_layers=True", "integer"),
    ("seed=none", "seed=none", "int"),
    ("task.length=64q", "task.length=64q", "64"),
    ("optimizer.lr=-1", "optimizer.lr=-1", "positive"),
    ("trainer.max_steps=0", "trainer.max_steps=0", "positive"),
    ("evaluation.sets=[]", "evaluation.sets", "at least one"),
    # sizes that do not divide
    ("model.n_heads=5", "model.n_heads=5", "closest that does is model.n_heads=4"),
    ("task.length=63", "task.length=63", "even"),
    # combinations that cannot work
    ("position=absolute_learned", "position.max_length=64", "sparse_length_4x"),
    ("task=selective_copy position=cope position.p_max=9", "position.p_max=9", "position.p_max=18"),
    ("task=passkey evaluation.sets=[length_10_depth_0]", "length_10_depth_0", "closest that works"),
    ("task=passkey_text task.length=200", "task.length=200", "closest that works is task.length=254"),
    ("model=lstm position=rope", "position=rope", "model=decoder"),
    ("trainer.device=cuda", "trainer.device=cuda", "cpu"),
    ("trainer.batch_size=1000000000", "trainer.batch_size=1000000000", "largest that fits is trainer.batch_size"),
    ("task=language_modelling corpus=text_files corpus.path=nowhere", "corpus.path=nowhere", "no such folder"),
    ("task=language_modelling evaluation.sets=[slidng]", "slidng", "closest is sliding"),
    ("corpus=text_files", "corpus=text_files", "task=language_modelling"),
    ("dataset=contiguous", "dataset=contiguous", "task=language_modelling"),
    # not an override, not a verb, not a run
    ("trainer.max_steps", "trainer.max_steps", "key=value"),
    ("seed=3,", "seed=3,", "key=value"),
    ("shwo", "shwo", "closest is show"),
    ("--confg-dir=x", "--confg-dir", "closest is --config-dir"),
    ("show nowhere/at-all", "nowhere/at-all", "no run"),
    ("resume nowhere/at-all", "nowhere/at-all", "no run"),
    ("evaluate nowhere/at-all", "nowhere/at-all", "no run"),
    ("evaluate", "evaluate", "lcbench evaluate outputs"),
    ("evaluate evaluation.lengths=[1k]", "evaluate", "takes one run's folder"),
    ("resume nowhere also/nowhere", "resume", "takes one run's folder"),
    ("compare nowhere/at-all", "nowhere/at-all", "no run"),
    ("compare", "compare", "lcbench compare outputs"),
    ("compare --metrc=error .", "--metrc", "closest is --metric"),
    ("list positions", "positions", "closest is position"),
    ("attention._target_=nowhere.Mine", "attention._target_=nowhere.Mine", "cannot be imported"),
    ("seed=1,2", "seed=1,2", "several values"),
]


@pytest.mark.parametrize(("words", "names", "hint"), MISTAKES, ids=[words for words, _, _ in MISTAKES])
def test_one_sentence_and_exit_code_2(words, names, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if words.startswith("trainer.device=cuda"):
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has what the mistake asks for")
    code = main(words.split())
    shown = capsys.readouterr()
    assert code == 2
    assert names in shown.err
    assert hint in shown.err
    assert shown.err.startswith("lcbench: ")
    assert len(shown.err.strip().splitlines()) == 1
    assert "Traceback" not in shown.err
    assert list(Path(tmp_path).iterdir()) == []


def test_a_message_names_the_file_a_key_came_from(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "task").mkdir(parents=True)
    (tmp_path / "mine" / "task" / "bits.yaml").write_text(
        "# mine\n_target_: lcbench.task.flip_flop.FlipFlop\nlenght: 16\n"
    )
    assert main(["--config-dir", "mine", "task=bits"]) == 2
    shown = capsys.readouterr().err
    assert "task.lenght=16 (conf/task/bits.yaml): no such key; the closest is task.length." in shown


def test_a_foreign_config_cannot_name_other_code_unless_trusted(tmp_path, capsys):
    import yaml

    from lcbench.composition import compose, from_config
    from lcbench.errors import ConfigurationError

    config = compose(["logger=none"]).config
    config["objective"] = {"_target_": "os.getcwd"}
    with pytest.raises(ConfigurationError, match=r"objective._target_=os.getcwd is no class of .* --trust"):
        from_config(config)
    folder = tmp_path / "outputs" / "flip_flop" / "foreign-00000000"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "result.json").write_text('{"status": "interrupted", "experiment": "flip_flop"}')
    assert main(["resume", str(folder)]) == 2
    assert "--trust" in capsys.readouterr().err


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "lcbench.engine.run.traceback.print_exc",  # a module that one of lcbench's imports
        "lcbench.sweep.processes.subprocess.Popen",
        "lcbench.logger.wandb.Path",  # a class that it imports
        "lcbench.results.record.write_text",  # a function of lcbench that is no component
        "lcbench.engine.callbacks.link",
        "torch.load",
        "torch.hub.load",
        "torch.utils.cpp_extension.load_inline",
        "lightning.pytorch.cli.instantiate_class",
        "lcbench.__main__.main",  # importing it runs the command
        "lcbench.cli.main",
        "torch._C._cuda_init",
        "lcbench.nothing.Nothing",
        "lcbench",
        "lcbench.",
        "lcbenchery.evil.Evil",
        "torch..nn.Linear",
    ],
)
def test_a_foreign_config_names_classes_of_lcbench_torch_and_lightning_alone(target):
    import yaml

    from lcbench.composition import compose, from_config
    from lcbench.errors import ConfigurationError

    config = yaml.safe_load(yaml.safe_dump(compose(["logger=none"]).config))
    from_config(config)
    with pytest.raises(ConfigurationError, match=r"objective._target_=.* --trust"):
        from_config({**config, "objective": {"_target_": target}})
    with pytest.raises(ConfigurationError, match=r"--trust"):
        from_config({**config, "tags": [{"_target_": target}]})


def test_every_component_of_lcbench_may_be_named():
    from lcbench.configs import config_directory
    from lcbench.schema import is_own

    targets = [
        line.split()[1]
        for path in config_directory().rglob("*.yaml")
        for line in path.read_text().splitlines()
        if line.startswith("_target_: lcbench.")
    ]
    assert len(targets) > 30
    assert all(map(is_own, targets))
    assert is_own("torch.nn.Linear")


def test_a_foreign_config_does_not_read_the_environment(monkeypatch):
    from lcbench.composition import compose, from_config
    from lcbench.errors import ConfigurationError

    monkeypatch.setenv("SECRET", "hunter2")
    config = {**compose(["logger=none"]).config, "tags": ["${oc.env:SECRET}"]}
    with pytest.raises(ConfigurationError, match=r"^tags=\$\{oc.env:SECRET\} .* --trust"):
        from_config(config)
    assert from_config(config, trust=True).config["tags"] == ["hunter2"]
