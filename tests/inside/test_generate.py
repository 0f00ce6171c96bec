"""Generation from a run's folder: the same text whatever the pieces, whole characters, mistakes in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lcbench
from lcbench.cli import main
from lcbench.composition import build, compose
from lcbench.errors import ConfigurationError
from lcbench.inside import generate as module
from tests.inside.conftest import trained

TASKS = ("flip_flop", "selective_copy", "selective_copy_mamba", "counting", "mqar", "passkey", "passkey_text")


@pytest.mark.parametrize("which", ["text_run", "flip_flop"])
def test_greedy_text_is_the_argmax_of_whole_forward_passes(which: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(which)
    network = lcbench.load(run)
    prompt = "<b>né & 12" if which == "text_run" else "w 0 i 1 w 1 i 0 r"
    spelling = network.experiment.task.spelling
    ids = spelling.encode(prompt).tolist()
    said: list[int] = []
    for _ in range(12):
        with torch.no_grad():
            said.append(int(network.model(torch.tensor([ids + said])).logits[0, -1].argmax()))
    expected = spelling.to_bytes(torch.tensor(said).numpy()).decode(errors="replace")
    for chunk in (1, 3, 4096):
        assert "".join(lcbench.generate(run, prompt, tokens=12, temperature=0, chunk=chunk)) == expected


def test_a_seed_says_the_same_whatever_the_pieces(text_run: Path, landmark_run: Path) -> None:
    for run in (text_run, landmark_run):
        network = lcbench.load(run)
        made = {
            seed: {"".join(lcbench.generate(network, "abc" * 9, tokens=40, seed=seed, chunk=c)) for c in (2, 7, 99)}
            for seed in (0, 1)
        }
        assert all(len(texts) == 1 for texts in made.values())
        assert made[0] != made[1]
        assert made[0] == {"".join(lcbench.generate(run, "abc" * 9, tokens=40, seed=0))}


def test_pieces_are_whole_characters(text_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [*"né☃".encode(), 0xF0, 0x9F, 0x98, 0x80, 0xC3]
    told = iter(script)
    monkeypatch.setattr(module.Sampler, "draw", lambda self, scores: next(told))
    pieces = list(lcbench.generate(text_run, "a", tokens=len(script)))
    assert pieces == ["n", "é", "☃", "\N{GRINNING FACE}", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("name", TASKS)
def test_what_a_task_can_say_can_be_typed(name: str) -> None:
    task = build(compose([f"task={name}"])).task
    batch = task.rows("in_distribution", 2, 0).take(0, 1)
    ids = batch.tokens[0].numpy()
    text = task.spelling.to_bytes(ids).decode()
    assert task.spelling.encode(text).tolist() == ids.tolist()


def test_the_command_writes_the_continuation_alone(flip_flop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(flip_flop), "--prompt", "w 0 i 1 r", "--tokens=6", "--temperature", "0"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said == "".join(lcbench.generate(flip_flop, "w 0 i 1 r", tokens=6, temperature=0)) + "\n"
    assert len(said.split()) == 6


def test_a_files_text_comes_first(text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("né ☃" * 20)
    options = ["--tokens", "20", "--seed", "4", "--top-p", "0.9"]
    assert main(["generate", str(text_run), "--file", str(file), "--prompt", " end", *options]) == 0
    said = capsys.readouterr().out
    assert said == "".join(lcbench.generate(text_run, "né ☃" * 20 + " end", tokens=20, seed=4, top_p=0.9)) + "\n"


def test_a_table_of_positions_ends_the_prompt_or_the_text(tmp_path: Path) -> None:
    sets = "evaluation.sets=[in_distribution]"
    run = trained(tmp_path, "task=flip_flop", "task.length=16", "position=absolute_learned", sets)
    limit = lcbench.load(run).model.attentions[0].position.max_length
    assert len("".join(lcbench.generate(run, "w 0 r " * 4)).split()) == limit - 12 + 1
    with pytest.raises(ConfigurationError, match=rf"closest is --tokens {limit - 11}\."):
        lcbench.generate(run, "w 0 r " * 4, tokens=limit)
    with pytest.raises(ConfigurationError, match=rf"takes {limit + 1} positions.*max_length={limit}"):
        lcbench.generate(run, "w " * (limit + 1))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "w 0 j"], "word 3, 'j', is no symbol; the closest is"),
        (["--prompt", " "], "no token"),
        ([], "needs a prompt"),
        (["--prompt", "w", "--top_p", "1"], "closest is --top-p"),
        (["--prompt", "w", "--tokens", "many"], "--tokens many"),
        (["--prompt", "w", "--tokens", "0"], "closest is 1"),
        (["--prompt", "w", "--temperature", "hot"], "--temperature hot"),
        (["--prompt"], "--prompt needs a value"),
        (["--prompt", "w", "--prompt", "r"], "stands there twice"),
        (["--file", "nowhere.txt"], "--file nowhere.txt cannot be read"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(
    words: list[str], said: str, flip_flop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(flip_flop), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_run_without_weights_is_refused(flip_flop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text((flip_flop / "config.yaml").read_text())
    assert main(["generate", str(tmp_path), "--prompt", "w"]) == 2
    assert "no checkpoint that can be read" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "nothing"), "--prompt", "w"]) == 2
    assert "is no run" in capsys.readouterr().err
