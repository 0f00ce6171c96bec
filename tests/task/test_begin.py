"""A token before every document and window: every token is a target, and a model that needs it always has it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from lcbench.composition import build, compose
from lcbench.corpus.base import TEST, VALIDATION
from lcbench.corpus.text_files import TextFiles
from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.concatenated import Concatenated
from lcbench.dataset.contiguous import Contiguous
from lcbench.engine.evaluation import score
from lcbench.engine.tally import facts_of
from lcbench.objective.next_token import NextToken
from lcbench.task.language_modelling import LanguageModelling
from lcbench.task.windows import PROTOCOLS
from lcbench.tokenizer.bytes import Bytes

BEGIN = 256


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for number in range(24):
        text = "".join("ab cd\n"[i] for i in rng.integers(6, size=rng.integers(2, 90)))
        (folder / f"{number}.txt").write_text(f"{number:02}{text}")
    return TextFiles(path=str(folder), validation=0.3, test=0.2)


@pytest.fixture
def task(corpus: TextFiles) -> LanguageModelling:
    return LanguageModelling(corpus, Bytes(), length=16, max_document=None, begin=True)


def test_the_vocabulary_has_one_more(task: LanguageModelling) -> None:
    assert task.begin == BEGIN == len(task.vocabulary) - 1
    assert task.vocabulary[BEGIN] == "<begin>"
    assert task.chance["perplexity"] == 257


@pytest.mark.parametrize(
    "name", ["non_overlapping", "sliding", "sliding_stride_5_length_7", "streaming", "test_sliding"]
)
def test_every_token_is_a_target_once(task: LanguageModelling, name: str) -> None:
    rows, found = task.rows(name, 10_000, 0), []
    for document, start, length, first in rows.windows.T:
        batch = task._batch(*(np.array([value]) for value in (document, start, length, first)))
        text = task.documents.of(int(document))
        assert int(batch.tokens[0, 0]) == BEGIN
        assert batch.tokens[0, 1:length].tolist() == text[start : start + length - 1].tolist()
        assert batch.targets[0, :length].tolist() == text[start : start + length].tolist()
        found += [(int(document), int(start) + t) for t in batch.scored[0].nonzero()[:, 0].tolist()]
        # a word counts where it begins
        before, whole = text[: start + first].tobytes(), text[: start + length].tobytes()
        assert int(batch.facts["bytes"][0]) == length - first
        assert int(batch.facts["words"][0]) == len(whole.split()) - len(before.split())
    numbers = task.numbers(TEST if name.startswith("test") else VALIDATION)
    assert sorted(found) == [(int(d), t) for d in sorted(numbers) for t in range(len(task.documents.of(int(d))))]
    assert rows.counts["targets_left_out"] == 0


@pytest.mark.parametrize("name", [*PROTOCOLS, "overlapping_all_stride_3"])
def test_no_window_is_without_it(task: LanguageModelling, name: str) -> None:
    rows = task.rows(name, 10_000, 0)
    for start, stop in rows.batches(8):
        batch = rows.take(start, stop)
        assert (batch.tokens[:, 0] == BEGIN).all()
        assert (batch.tokens[:, 1:] != BEGIN).all()
        assert (batch.targets != BEGIN).all()
    training = task.sample(np.random.default_rng(0), 50, TRAIN)
    assert (training.tokens[:, 0] == BEGIN).all()
    assert "<" not in task.describe(training, 0)


def test_packed_rows_and_streams_begin_with_it(task: LanguageModelling) -> None:
    texts = {bytes([*task.documents.of(int(n))]) for n in task.numbers(TRAIN)}
    packed = Concatenated(task, 0, 3)
    for index in range(packed.reel.total // 48):
        batch = packed.batch(index)
        assert (batch.tokens[:, 0] == BEGIN).all()
        documents = torch.zeros_like(batch.tokens) if batch.documents is None else batch.documents
        begins = torch.cat([torch.ones(3, 1, dtype=torch.bool), documents[:, 1:] != documents[:, :-1]], 1)
        assert torch.equal(batch.tokens == BEGIN, begins)
        assert (batch.targets[batch.supervised] != BEGIN).all()
    stream = Contiguous(task, 0, 1)
    pieces = (stream.reel.total - 1) // 16
    joined = Batch.concatenate([stream.batch(index) for index in range(pieces)])
    read, target = joined.tokens.flatten().tolist(), joined.targets.flatten().tolist()
    assert read[0] == BEGIN
    assert read[1:] == target[:-1]
    parts = [bytes(part) for begins, part in itertools.groupby(read, lambda i: i == BEGIN) if not begins]
    assert set(parts[:-1]) <= texts
    assert len(parts) >= len(texts) - 1
    # each document's tokens are all targets, the first too
    learned = int(joined.supervised.sum())
    assert learned >= sum(map(len, texts)) - 17


def test_a_stream_is_read_as_its_documents_are_scored(corpus: TextFiles) -> None:
    words = ["task=language_modelling", "corpus=text_files", f"corpus.path={corpus.path}", "task.begin=true"]
    words += ["model.d_model=16", "model.n_heads=2", "model.n_layers=1", "task.length=16", "position=rope"]
    experiment = build(compose([*words, "corpus.validation=0.3", "logger=none", "trainer.device=cpu"]))
    torch.manual_seed(0)
    model, task = experiment.make_model().double().eval(), experiment.task
    assert isinstance(task, LanguageModelling)
    nats, count = 0.0, 0
    with torch.no_grad():
        for number in task.numbers(VALIDATION):
            ids = torch.tensor([[BEGIN, *task.documents.of(int(number)).tolist()]])
            nats += float(task.judge(model(ids[:, :-1]).logits, ids[:, 1:]).sum())
            count += ids.shape[1] - 1
    options = {"examples": 10_000, "batch_size": 4, "seed": 0, "device": "cpu", "objective": NextToken()}
    for name in ("streaming", "sliding_stride_1_length_1k"):
        found = score(model, task, name, **options)  # type: ignore[arg-type]
        assert found["loss_n"] == found["bits_per_byte_n"] == count
        assert found["loss"] == pytest.approx(nats / count, rel=1e-9)
    stream = Contiguous(task, 1, 1)
    batch = stream.batch(0)
    assert model(batch.tokens, facts_of(batch)).logits.shape == (1, 16, 257)


def test_a_document_of_one_token_counts(tmp_path: Path) -> None:
    for number, text in enumerate(("x", "y", "z")):
        (tmp_path / f"{number}.txt").write_text(text)
    corpus = TextFiles(path=str(tmp_path), split="documents")
    task = LanguageModelling(corpus, Bytes(), length=4, min_document=1, begin=True)
    assert task.rows("streaming", 10, 0).positions == 1
