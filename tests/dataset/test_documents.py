"""Documents packed and streamed: every target once an epoch, nothing across documents, the same from any index."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lcbench.composition import build, compose
from lcbench.corpus.text_files import TextFiles
from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.concatenated import Concatenated
from lcbench.dataset.contiguous import Contiguous
from lcbench.engine.tally import facts_of
from lcbench.errors import ConfigurationError
from lcbench.task.flip_flop import FlipFlop
from lcbench.task.language_modelling import LanguageModelling
from lcbench.tokenizer.bytes import Bytes


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelling:
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for number in range(20):
        # every pair of bytes is in one place only
        text = "".join(chr(256 + number * 64 + place) for place in range(rng.integers(3, 60)))
        (folder / f"{number:02}.txt").write_text(text)
    return LanguageModelling(TextFiles(path=str(folder)), Bytes(), length=16)


def pairs_of(batch: Batch) -> list[tuple[int, ...]]:
    """Three tokens in a row that are read or predicted together, where all are of one document."""
    found = []
    for tokens, targets, supervised in zip(batch.tokens, batch.targets, batch.supervised, strict=True):
        found += [(int(a), int(b)) for a, b, there in zip(tokens, targets, supervised, strict=True) if there]
    return found


def training_pairs(task: LanguageModelling) -> list[tuple[int, int]]:
    texts = [task.documents.of(int(number)).tolist() for number in task.numbers(TRAIN)]
    return sorted(pair for text in texts for pair in itertools.pairwise(text))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_packed_rows_hold_every_target_once_an_epoch(task: LanguageModelling, batch_size: int) -> None:
    dataset = Concatenated(task, 5, batch_size)
    total = sum(len(task.documents.of(int(n))) for n in task.numbers(TRAIN))
    rows = (total - 1) // 16
    wanted = training_pairs(task)
    for epoch in range(2):
        numbers = range(epoch * rows, (epoch + 1) * rows)
        batches = {number // batch_size: dataset.batch(number // batch_size) for number in numbers}
        held = [batches[n // batch_size].rows(n % batch_size, n % batch_size + 1) for n in numbers]
        found = sorted(pair for row in held for pair in pairs_of(row))
        missing = list(wanted)
        for pair in found:
            missing.remove(pair)  # raises for one too many
        assert len(missing) < 16 + 1


@pytest.mark.parametrize("kind", [Concatenated, Contiguous])
def test_numbers_tell_documents_apart(task: LanguageModelling, kind: type) -> None:
    for index in range(12):
        batch = kind(task, 1, 4).batch(index)
        if batch.documents is None:
            assert batch.supervised.all()
            continue
        inside = batch.documents[:, 1:] == batch.documents[:, :-1]
        assert torch.equal(inside, batch.supervised[:, :-1])
        for row in range(4):
            for number in batch.documents[row].unique():
                text = bytes(batch.tokens[row, batch.documents[row] == number].tolist())
                assert any(text in task.documents.of(int(n)).tobytes() for n in task.numbers(TRAIN))


def test_streams_go_on_where_they_ended(task: LanguageModelling) -> None:
    dataset = Contiguous(task, 3, 3)
    total = sum(len(task.documents.of(int(n))) for n in task.numbers(TRAIN))
    pieces = (total // 3 - 1) // 16
    batches = list(dataset.loader(0, 2 * pieces))
    assert [batch.continues for batch in batches] == ([False] + [True] * (pieces - 1)) * 2
    for before, after in itertools.pairwise(batches):
        if after.continues:
            assert torch.equal(before.targets[:, -1], after.tokens[:, 0])
    epoch = [Batch.concatenate(batches[:pieces]), Batch.concatenate(batches[pieces:])]
    assert not torch.equal(epoch[0].tokens, epoch[1].tokens)
    wanted = training_pairs(task)
    for part in epoch:
        for pair in pairs_of(part):
            assert pair in wanted
        assert len(pairs_of(part)) > len(wanted) - 3 * 17


@pytest.mark.parametrize("kind", [Concatenated, Contiguous])
def test_a_batch_is_a_function_of_its_index(task: LanguageModelling, kind: type) -> None:
    whole = list(kind(task, 7, 3).loader(0, 15))
    for start in (1, 8, 14):
        again = next(iter(kind(task, 7, 3).loader(start)))
        assert torch.equal(again.tokens, whole[start].tokens)
        assert torch.equal(again.supervised, whole[start].supervised)
    assert not torch.equal(kind(task, 8, 3).batch(0).tokens, whole[0].tokens)


@pytest.mark.parametrize("words", [[], ["attention=transformer_xl", "attention.segment=8", "position=transformer_xl"]])
def test_a_stream_is_read_as_its_documents_are(task: LanguageModelling, words: list[str]) -> None:
    """A network that reads streams piece by piece, its state carried, says what it says of each document alone."""
    small = ["model.d_model=16", "model.n_heads=2", "model.n_layers=2", "position=alibi", "logger=none"]
    torch.manual_seed(0)
    corpus = [f"corpus.path={task.corpus.path}", "corpus=text_files", "task=language_modelling"]  # type: ignore[attr-defined]
    model = build(compose([*corpus, *small, *words])).make_model().double().eval()
    dataset = Contiguous(task, 3, 2)
    state, logits, batches = None, [], []
    with torch.no_grad():
        for batch in dataset.loader(0, 12):
            output = model(batch.tokens, facts_of(batch), state)
            state = output.state
            logits.append(output.logits)
            batches.append(batch)
        joined, said = Batch.concatenate(batches), torch.cat([part.unflatten(0, (1, 2)) for part in logits])
        for row in range(2):
            documents = joined.documents.unflatten(0, (12, 2))[:, row].flatten()  # type: ignore[union-attr]
            tokens = joined.tokens.unflatten(0, (12, 2))[:, row].flatten()
            for number in documents.unique():
                alone = model(tokens[documents == number][None]).logits[0]
                assert torch.allclose(said[:, row].flatten(0, 1)[documents == number], alone, atol=1e-9)


def test_what_cannot_be_arranged(task: LanguageModelling) -> None:
    for kind, name in ((Concatenated, "concatenated"), (Contiguous, "contiguous")):
        with pytest.raises(
            ConfigurationError, match=f"dataset={name} arranges documents, and task=flip_flop has none"
        ):
            kind(FlipFlop(), 0, 1)
    with pytest.raises(
        ConfigurationError, match=r"trainer.batch_size=1000: .* closest that works is trainer.batch_size="
    ):
        Contiguous(task, 0, 1000).batch(0)
    words = ["task=language_modelling", "corpus=text_files", f"corpus.path={task.corpus.path}", "objective=trime"]  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="objective=trime takes all that comes before in a row as memory"):
        build(compose([*words, "dataset=concatenated"]))
    long = LanguageModelling(task.corpus, Bytes(), length=100_000)
    with pytest.raises(ConfigurationError, match=r"task.length=100000 is more than all training text"):
        Concatenated(long, 0, 1).batch(0)


def test_an_encoding_with_too_few_places_for_a_document_is_refused(task: LanguageModelling) -> None:
    words = [
        "task=language_modelling",
        "corpus=text_files",
        f"corpus.path={task.corpus.path}",
        "position=absolute_learned",
    ]  # type: ignore[attr-defined]
    words += ["task.length=16", "position.max_length=16", "evaluation.sets=[non_overlapping]", "trainer.batch_size=2"]
    build(compose([*words, "dataset=concatenated"]))
    with pytest.raises(ConfigurationError, match=r"position.max_length=16 places, but training needs"):
        build(compose([*words, "dataset=contiguous"]))
