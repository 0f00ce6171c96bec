"""Every config file composes, says what it is, and every experiment trains two steps."""

from __future__ import annotations

import base64
import contextlib
import inspect

import pytest
from omegaconf import OmegaConf

from lcbench.composition import build, compose
from lcbench.configs import choices_of, config_directory, describe, groups_of
from lcbench.errors import ConfigurationError
from lcbench.schema import injected, locate, options_of

DIRECTORIES = [config_directory()]
GROUPS = [group for group in groups_of(DIRECTORIES) if group != "experiment"]
CHOICES = [(group, choice) for group in GROUPS for choice in choices_of(group, DIRECTORIES)]
EXPERIMENTS = list(choices_of("experiment", DIRECTORIES))

#: data sets that are ready to be chosen, each a file for the same class
READY = ("arxiv_math", "c4_long", "github_code", "pg19", "proof_pile", "the_stack", "wikitext103")

#: what a choice needs beside itself
NEEDS = {
    ("position", "absolute_learned"): ["evaluation.sets=[in_distribution]"],
    ("attention", "bigbird"): ["position=rope"],
    ("attention", "landmark"): ["dataset=landmark"],
    ("attention", "linear"): ["position=rope"],
    ("attention", "longt5_global"): ["position=rope"],
    ("attention", "sparse_transformer"): ["position=rope"],
    ("dataset", "concatenated"): ["task=language_modelling"],
    ("dataset", "contiguous"): ["task=language_modelling"],
    ("corpus", "python_stdlib"): ["task=language_modelling"],
    ("corpus", "text_files"): ["task=language_modelling", f"corpus.path={config_directory()}"],
    ("corpus", "huggingface"): ["task=language_modelling", f"corpus.path={config_directory()}"],
    **{("corpus", name): ["task=language_modelling"] for name in READY},
    ("corpus", "enwik8"): ["task=language_modelling", f"corpus.path={config_directory() / 'config.yaml'}"],
    ("tokenizer", "bytes"): ["task=language_modelling"],
    ("tokenizer", "bpe"): ["task=language_modelling", "corpus=text_files", f"corpus.path={config_directory()}"],
    ("tokenizer", "huggingface"): ["task=language_modelling", "tokenizer.name=./tokenizer.json"],
    ("tokenizer", "sentencepiece"): ["task=language_modelling", "tokenizer.path=./tokenizer.model"],
    ("tokenizer", "tiktoken"): ["task=language_modelling", "tokenizer.name=./ranks.tiktoken"],
    ("objective", "reconstruction"): ["attention=compressive", "position=rope"],
}

#: shrinks any experiment to seconds without touching what it is about
SMALL = [
    "model.d_model=16",
    "model.n_layers=2",
    "model.d_ff=32",
    "model.n_heads=2",
    "trainer.max_steps=2",
    "trainer.batch_size=3",
    "trainer.accumulate=1",
    "trainer.evaluate_every=0",
    "trainer.precision='32'",
    "trainer.device=cpu",
    "evaluation.examples=1",
    "logger=none",
]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_builds(group, choice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if choice == "bpe":
        pytest.importorskip("tokenizers")
    if choice in ("huggingface", *READY):
        pytest.importorskip("datasets")
    if choice in ("sentencepiece", "tiktoken"):
        pytest.importorskip(choice)
    if group == "tokenizer":
        small_tokenizers(tmp_path)
    build(compose([f"{group}={choice}", *NEEDS.get((group, choice), [])]))


def small_tokenizers(folder):
    """Files of tokenizers, where the packages that write them are there."""
    (folder / "ranks.tiktoken").write_text(
        "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    )
    with contextlib.suppress(ImportError):
        import tokenizers

        tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(folder / "tokenizer.json"))
    with contextlib.suppress(ImportError):
        import sentencepiece

        with (folder / "tokenizer.model").open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(["a b c"]), model_writer=file, vocab_size=7, minloglevel=2
            )


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_file_says_what_it_is_and_mirrors_its_module(group, choice):
    path = choices_of(group, DIRECTORIES)[choice]
    assert describe(path), f"{path} must begin with a comment: what it is, and the paper"
    target = next(line.split()[1] for line in path.read_text().splitlines() if line.startswith("_target_:"))
    module = target.rpartition(".")[0]
    if group not in ("trainer", "evaluation"):
        assert module == f"lcbench.{group}.{'huggingface' if choice in READY else choice}"
    assert inspect.getmodule(locate(target, "_target_")).__doc__


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_default_is_valid_and_every_option_documented(group, choice):
    config = compose([f"{group}={choice}", *NEEDS.get((group, choice), [])]).config
    if group not in config:
        return
    target = locate(config[group]["_target_"], "_target_")
    owners = [owner for owner in inspect.getmro(target) if owner.__module__.startswith("lcbench.")]
    documented = " ".join(owner.__doc__ or "" for owner in owners)
    for name in [*options_of(target), *injected(target)]:
        if name != "shape":
            assert f"{name}" in documented, f"{target.__name__}: {name} is not documented"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_two_steps(name, run_here):
    known = options_of(locate(compose([f"experiment={name}"]).config["model"]["_target_"], "_target_"))
    small = [word for word in SMALL if not word.startswith("model.") or word[6:].partition("=")[0] in known]
    result, _, _ = run_here(f"experiment={name}", base=small)
    assert result["status"] == "completed", result["error"]
    assert result["experiment"] == name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_what_it_is(name):
    assert describe(choices_of("experiment", DIRECTORIES)[name])


def test_overrides_on_top_of_an_experiment_win():
    assert compose(["experiment=cope/flip_flop", "optimizer.lr=0.5"]).config["optimizer"]["lr"] == 0.5
    assert "rope" in compose(["experiment=cope/flip_flop", "position=rope"]).config["position"]["_target_"]


TUNED = sorted(
    path.relative_to(config_directory() / "tuned") for path in (config_directory() / "tuned").rglob("*.yaml")
)


@pytest.mark.parametrize("file", TUNED, ids=str)
def test_what_an_experiment_sets_for_an_encoding_alone(file):
    """It reaches that encoding and no other, says what it is, and yields to the command line."""
    experiment, position = file.parent.as_posix(), file.stem
    assert describe(config_directory() / "tuned" / file)
    node = OmegaConf.load(config_directory() / "tuned" / file)
    words = [f"experiment={experiment}", f"position={position}"]
    for group, options in node.items():
        for key, value in options.items():
            assert compose(words).config[group][key] == value
    assert compose([*words, "optimizer.lr=0.5"]).config["optimizer"]["lr"] == 0.5
    with pytest.raises(ConfigurationError, match=r"tuned=.*no such key"):
        compose([f"tuned={experiment}/{position}"])


def test_identity_is_what_is_computed():
    base = compose([])
    assert compose(["outputs=elsewhere", "logger=none", "trainer.progress=false"]).hash == base.hash
    assert compose(["position=cope"]).hash == base.hash
    assert compose(["task.length=1k"]).hash == compose(["seed=0", "task.length=1000"]).hash
    assert len({compose([word]).hash for word in ("seed=1", "seed=2", "position=rope", "model.dropout=0.1")}) == 4
    assert compose(["seed=1"]).folder_name == f"seed-1-{compose(['seed=1']).hash}"


def test_lengths_may_be_written_short():
    assert compose(["task.length=1k"]).config["task"]["length"] == 1000


def test_a_users_own_class_needs_no_registration(tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(
        "from lcbench.attention.full import Full\n"
        "class Mine(Full):\n"
        "    def __init__(self, shape, position, *, sharpness: float = 1.0):\n"
        "        super().__init__(shape, position)\n"
        "        self.sharpness = sharpness\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = compose(["attention._target_=my_package.Mine", "attention.sharpness=2.0"]).config
    assert config["attention"] == {"_target_": "my_package.Mine", "sharpness": 2.0}
    build(compose(["attention._target_=my_package.Mine"]))
