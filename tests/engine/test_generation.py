"""Generation is what whole forward passes say, token by token, whatever the mechanism, the pieces and the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import lcbench
from lcbench.attention.base import Facts
from lcbench.composition import build, compose
from lcbench.dataset.base import Batch
from lcbench.engine.evaluation import score
from lcbench.engine.generation import Reader, prompts_of, speak, without_landmarks
from lcbench.engine.streaming import stream_score
from lcbench.model.base import Model
from lcbench.task.base import NOT_SAID, Spoken, Task
from lcbench.task.passkey_text import PasskeyText
from lcbench.task.prompts import landmark_correct, read_passkey

SMALL = ("task=counting", "model.d_model=16", "trainer.device=cpu", "logger=none")
TWO = (*SMALL, "model.n_heads=2", "model.n_layers=2")
NETWORKS = {
    "full": (*TWO, "position=cope"),
    "infini": (*TWO, "attention=infini", "attention.segment=4", "position=rope"),
    "window": (*TWO, "attention=sliding_window", "attention.window=5", "position=alibi"),
    "transformer_xl": (*TWO, "attention=transformer_xl", "attention.segment=4", "position=transformer_xl"),
    "recurrent_memory": (*TWO, "model=recurrent_memory", "model.segment=6", "model.slots=2", "position=rope"),
    "lstm": (*SMALL, "model=lstm"),
    "landmark": (
        *(*TWO, "attention=landmark", "attention.window=8", "attention.block=3", "position=rope"),
        *("dataset=landmark", "dataset.block=3"),
    ),
    "predicted landmarks": (*TWO, "dataset=landmark", "dataset.block=4", "dataset.predicted=true", "position=rope"),
}


def made(*words: str) -> tuple[Task, Model, Reader]:
    torch.manual_seed(1)
    experiment = build(compose(list(words)))
    model = experiment.make_model().double().eval()
    # sharper than at the start, so that no two tokens are as likely
    with torch.no_grad():
        getattr(model, "decoder", model).output.weight.mul_(20)
    task = experiment.task
    return task, model, Reader(model, experiment.objective, task.insertion, "cpu")


def by_hand(task: Task, model: Model, prompt: list[int], tokens: int) -> list[int]:
    """Greedily, one row alone, the whole text read again for every token."""
    text, said = list(prompt), []
    block = task.insertion.block if task.insertion else 0
    while len(said) < tokens:
        ids: list[int] = []
        for place, token in enumerate(text):
            ids.append(token)
            if block and (place + 1) % block == 0 and (task.insertion.predicted or place + 1 < len(text)):
                ids.append(task.insertion.token)
        whole = torch.tensor([ids])
        marks = (whole == task.insertion.token) if task.insertion else None
        scores = model(whole, Facts(landmarks=marks)).logits[0, -1]
        if task.insertion:
            scores = scores[: task.insertion.token]
        said.append(int(scores.argmax()))
        text.append(said[-1])
    return said


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("chunk", [2, 4096])
@torch.inference_mode()
def test_greedy_generation_is_the_argmax_of_whole_forward_passes(name: str, chunk: int) -> None:
    task, model, reader = made(*NETWORKS[name])
    reader.chunk = chunk
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, size=length).tolist() for length in (7, 3)]
    tokens = torch.zeros(2, 7, dtype=torch.int64)
    padding = torch.ones(2, 7, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
        padding[row, : len(prompt)] = False
    said = speak(reader, reader.read(tokens, padding), Spoken(6, never))
    expected = [by_hand(task, model, prompt, 6) for prompt in prompts]
    assert said.tolist() == expected
    assert len({token for row in expected for token in row}) > 1


def never(said: Tensor) -> Tensor:
    return torch.zeros(len(said), dtype=torch.bool)


@torch.inference_mode()
def test_a_row_says_as_much_as_a_table_of_positions_has_places_for() -> None:
    sets = "evaluation.sets=[in_distribution]"
    task, model, reader = made(*TWO, "position=absolute_learned", "position.max_length=63", "task.length=64", sets)
    tokens = torch.randint(5, (2, 62))
    padding = torch.zeros(2, 62, dtype=torch.bool)
    padding[1, -2:] = True
    said = speak(reader, reader.read(tokens, padding), Spoken(30, never))
    # the last token said need not be read
    assert (said != NOT_SAID).sum(1).tolist() == [2, 4]
    assert said[1, :4].tolist() == by_hand(task, model, tokens[1, :-2].tolist(), 4)


def spoken_errors(texts: list[str], batch: Batch, task: PasskeyText) -> dict[str, list[bool]]:
    width = max(len(text) for text in texts)
    said = torch.full((len(texts), width), NOT_SAID)
    for row, text in enumerate(texts):
        said[row, : len(text)] = torch.tensor(list(text.encode()))
    return {name: values.tolist() for name, values in task.said_outcomes(batch, said).items()}


def test_landmarks_rule_reads_the_first_run_of_digits() -> None:
    task = PasskeyText(length=300)
    batch = task.sample(np.random.default_rng(0), 5, "in_distribution")
    keys = [str(int(read_passkey(task.describe(batch, row))[1][0])) for row in range(5)]
    texts = [f" {keys[0]}.", f", I think, 0{keys[1]} or 7", f" {keys[2]}1.", " no idea", f" 1 {keys[4]}"]
    found = spoken_errors(texts, batch, task)
    assert found["error"] == [False, False, True, True, True]
    assert found["error"] == [not landmark_correct(text, int(key)) for text, key in zip(texts, keys, strict=True)]
    assert not any(found["token_error"][: len(keys[0])])
    spoken = task.spoken("in_distribution")
    assert spoken is not None
    ends = torch.tensor([[*b" 12."], [*b" 123"], [*b" yes"], [*b" 1", NOT_SAID, NOT_SAID]])
    assert spoken.settled(ends).tolist() == [True, False, False, False]
    assert task.spoken("longlora_length_300") is None


@pytest.mark.parametrize("dataset", ["synthetic", "landmark"])
def test_landmarks_protocol_is_scored_by_generation_streamed_or_not(dataset: str) -> None:
    words = ["task=passkey_text", "task.length=280", f"dataset={dataset}", "position=rope", "logger=none"]
    words += ["model.d_model=16", "model.n_heads=2", "model.n_layers=1", "trainer.device=cpu"]
    if dataset == "landmark":
        words += ["attention=landmark", "attention.block=20", "attention.window=60", "dataset.block=20"]
    torch.manual_seed(0)
    experiment = build(compose(words))
    model, task = experiment.make_model().double().eval(), experiment.task
    # says digits and points, so that runs of digits end
    with torch.no_grad():
        model.output.weight.mul_(10)  # type: ignore[operator, union-attr]
        model.output.weight[58:].zero_()  # type: ignore[index, union-attr]
        model.output.weight[:46].zero_()  # type: ignore[index, union-attr]
    options = {"examples": 3, "seed": 0, "device": "cpu", "objective": experiment.objective}
    whole = score(model, task, "in_distribution", batch_size=3, **options)
    assert whole["error_n"] == 3
    for chunk, batch_size in ((64, 2), (1000, 1)):
        streamed = stream_score(model, task, "in_distribution", chunk=chunk, batch_size=batch_size, **options)
        assert streamed.scores == whole
    # the same by hand, a row alone
    rows = task.rows("in_distribution", 3, 0)
    wrong = []
    plain = task.task if hasattr(task, "task") else task
    for row in range(3):
        batch = without_landmarks(rows.take(row, row + 1), task.insertion)
        prompt, _ = prompts_of(batch)
        with torch.inference_mode():
            text = bytes(by_hand(task, model, prompt[0].tolist(), 8)).decode(errors="replace")
        wrong.append(not landmark_correct(text, int(read_passkey(plain.describe(batch, 0))[1][0])))
    assert whole["error"] == sum(wrong) / 3


def test_segments_cannot_be_read_before_an_answer() -> None:
    from lcbench.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match=r"closest that works is evaluation\.segment=null"):
        build(compose(["task=passkey_text", "evaluation.segment=64"]))
    assert lcbench.build_model(["task=passkey_text"]) is not None
