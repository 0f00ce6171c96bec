"""Protocols, counts and scores: every target once, and numbers that mean the same under every protocol."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lcbench.attention.base import Facts
from lcbench.composition import build, compose
from lcbench.corpus.base import TEST, VALIDATION
from lcbench.corpus.documents import Unwatched
from lcbench.corpus.text_files import TextFiles
from lcbench.dataset.base import TRAIN
from lcbench.engine.evaluation import score
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model, ModelOutput, ModelState, place
from lcbench.objective.next_token import NextToken
from lcbench.task.language_modelling import LanguageModelling
from lcbench.task.windows import PROTOCOLS, windows_of
from lcbench.tokenizer.bytes import Bytes

ONCE = ("non_overlapping", "sliding", "streaming")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for number in range(30):
        words = [f"{word:x}" for word in rng.integers(4096, size=rng.integers(1, 80))]
        (folder / f"{number}.txt").write_text("".join(word + "  \n\t"[rng.integers(4)] for word in words))
    return TextFiles(path=str(folder), validation=0.3, test=0.2)


@pytest.fixture
def task(corpus: TextFiles) -> LanguageModelling:
    return LanguageModelling(corpus, Bytes(), length=16, max_document=None)


class Fixed(Model):
    """Logits that depend on the token alone: a bigram, which knows no context."""

    d_model = 256

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, tokens: Tensor, context: Facts | None = None, state: ModelState | None = None) -> ModelOutput:
        hidden = self.table[tokens]
        return ModelOutput(torch.nn.Identity(), 256, place(tokens, context, state).reached, hidden, hidden)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return 8 * batch


def scores(model: Model, task: LanguageModelling, evaluation_set: str, **options: object) -> dict[str, float]:
    given = {"examples": 10_000, "batch_size": 8, "seed": 0, "device": "cpu", "objective": NextToken(), **options}
    return score(model, task, evaluation_set, **given)  # type: ignore[arg-type]


def counted(task: LanguageModelling, name: str, examples: int = 10_000) -> dict[tuple[int, int], int]:
    """How often each target (document, place) counts, found by looking up what rows hold in the documents."""
    found: dict[tuple[int, int], int] = {}
    rows = task.rows(name, examples, 0)
    for document, start, length, first in rows.windows.T:
        text = task.documents.of(int(document))
        batch = task._batch(*(np.array([v]) for v in (document, start, length, first)))
        places = batch.scored[0].nonzero()[:, 0].tolist()
        for place_in_row in places:
            target = int(start) + place_in_row + 1
            assert int(batch.targets[0, place_in_row]) == text[target]
            assert batch.tokens[0, : place_in_row + 1].tolist() == text[start:target].tolist()
            found[int(document), target] = found.get((int(document), target), 0) + 1
    return found


@pytest.mark.parametrize(
    "name", [*ONCE, "sliding_stride_1", "sliding_stride_16", "sliding_stride_5_length_7", "test_sliding"]
)
def test_every_target_counts_once(task: LanguageModelling, name: str) -> None:
    part = TEST if name.startswith("test") else VALIDATION
    wanted = {(int(d), t) for d in task.numbers(part) for t in range(1, len(task.documents.of(int(d))))}
    found = counted(task, name)
    assert set(found) == wanted
    assert set(found.values()) == {1}
    assert task.rows(name, 10_000, 0).counts["targets_left_out"] == 0


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("targets", [1, 7, 8, 9, 16, 17, 40])
def test_context_of_a_target_is_what_the_protocol_says(targets: int, stride: int) -> None:
    length = 8
    context: dict[str, dict[int, list[int]]] = {}
    for protocol in PROTOCOLS:
        windows = windows_of(protocol, targets, length, stride)
        found = context.setdefault(protocol, {})
        for start, inputs, first in zip(windows.start, windows.length, windows.first, strict=True):
            for t in range(first, inputs):
                found.setdefault(int(start + t), []).append(int(t) + 1)
    every = range(targets)
    assert context["non_overlapping"] == {t: [t % length + 1] for t in every}
    assert context["streaming"] == {t: [t + 1] for t in every}
    assert context["truncated_document"] == {t: [t + 1] for t in range(min(length, targets))}
    for t in every:
        (seen,) = context["sliding"][t]
        assert seen == t + 1 if t < length else length - stride + 1 <= seen <= length
    # each whole window, all of it
    starts = [0] if targets <= length else [s for s in range(0, targets, stride) if s + length <= targets]
    wanted: dict[int, list[int]] = {}
    for start in starts:
        for t in range(min(length, targets)):
            wanted.setdefault(start + t, []).append(t + 1)
    assert context["overlapping_all"] == wanted


@pytest.mark.parametrize("name", [*PROTOCOLS, "sliding_length_4x", "overlapping_all_stride_3", "test_streaming"])
def test_a_uniform_model_gives_the_size_of_the_vocabulary(task: LanguageModelling, name: str) -> None:
    found = scores(Fixed(torch.zeros(256, 256)), task, name)
    assert found["perplexity"] == pytest.approx(256, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(8, rel=1e-5)
    assert found["perplexity_low"] == pytest.approx(256, rel=1e-4)
    if name != "truncated_document":
        words = found["perplexity"] ** (found["perplexity_n"] / found["word_perplexity_n"])
        assert found["word_perplexity"] == pytest.approx(words, rel=1e-5)
    assert {task.chance[metric] for metric in ("loss", "perplexity")} == {math.log(256), 256}


def test_a_model_without_context_scores_the_same_under_every_protocol(task: LanguageModelling) -> None:
    """The reference: the mean over all bigrams of the documents, one by one."""
    table = torch.randn(256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_p = table.log_softmax(-1).numpy()
    texts = [task.documents.of(int(d)).tobytes() for d in task.numbers(VALIDATION)]
    nats = [[-log_p[a, b] for a, b in itertools.pairwise(t)] for t in texts]
    whole = [loss for document in nats for loss in document]
    # words that begin in a target: all but one that begins a document
    words = sum(len(t.split()) - (not t[:1].isspace()) for t in texts)
    for name in (*ONCE, "sliding_stride_2", "non_overlapping_length_3", "sliding_stride_16"):
        found = scores(Fixed(table), task, name)
        assert found["loss"] == pytest.approx(np.mean(whole))
        assert found["loss_n"] == found["bits_per_byte_n"] == len(whole)
        assert found["bits_per_byte"] == pytest.approx(np.mean(whole) / math.log(2))
        assert found["word_perplexity_n"] == words
        assert found["word_perplexity"] == pytest.approx(math.exp(sum(whole) / words))
        assert found["loss_low"] < found["loss"] < found["loss_high"]
    cut = scores(Fixed(table), task, "truncated_document")
    begun = [len(t[:17].split()) - (not t[:1].isspace()) for t in texts]
    by_word = [sum(document[:16]) / n for document, n in zip(nats, begun, strict=True) if n]
    assert cut["word_perplexity_n"] == sum(begun)
    assert cut["word_perplexity"] == pytest.approx(math.exp(np.mean(by_word)))
    assert cut["loss"] == pytest.approx(np.mean([np.mean(document[:16]) for document in nats]))
    assert cut["perplexity"] == pytest.approx(math.exp(cut["loss"]))


def test_loss_by_position_adds_up(task: LanguageModelling) -> None:
    table = torch.randn(256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = scores(Fixed(table), task, "sliding_stride_8_length_32")
    places = [key for key in found if key.startswith("loss/position") and f"{key}_n" in found]
    assert places == [f"loss/position_{name}" for name in ("1", "2_3", "4_7", "8_15", "16_31", "32_63")]
    assert sum(found[f"{key}_n"] for key in places) == found["loss_n"]
    total = sum(found[key] * found[f"{key}_n"] for key in places)
    assert total / found["loss_n"] == pytest.approx(found["loss"])


def test_a_trained_network_reads_as_far_as_the_protocol_lets_it(corpus: TextFiles) -> None:
    base = ["task=language_modelling", "corpus=text_files", f"corpus.path={corpus.path}", "corpus.validation=0.3"]
    small = ["model.d_model=16", "model.n_heads=2", "model.n_layers=2", "task.length=16", "position=alibi"]
    experiment = build(compose([*base, *small, "logger=none", "trainer.device=cpu"]))
    torch.manual_seed(0)
    model, task = experiment.make_model().double(), experiment.task
    assert isinstance(task, LanguageModelling)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3)  # so that context matters
    by_hand = []
    with torch.no_grad():
        for document in task.numbers(VALIDATION):
            ids = torch.from_numpy(task.documents.of(int(document)).astype(np.int64))[None]
            by_hand.append(task.judge(model(ids[:, :-1]).logits, ids[:, 1:])[0])
    whole = float(torch.cat(by_hand).mean())
    streamed = [scores(model, task, "streaming", chunk=chunk)["loss"] for chunk in (1, 7, 4096)]
    assert streamed == pytest.approx([whole] * 3, rel=1e-9)
    assert scores(model, task, "sliding_stride_1_length_1k")["loss"] == pytest.approx(whole, rel=1e-9)
    alone, once = (scores(model, task, name)["loss"] for name in ("non_overlapping", "sliding_stride_16"))
    assert alone == pytest.approx(once, rel=1e-12)
    assert alone != pytest.approx(whole, rel=1e-6)


def test_logits_are_made_in_slices(task: LanguageModelling, monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randn(256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = scores(Fixed(table), task, "streaming")
    monkeypatch.setattr("lcbench.engine.tally.MOST_LOGITS", 3 * 256)
    seen = []
    judge = LanguageModelling.judge
    monkeypatch.setattr(LanguageModelling, "judge", lambda self, s, t: (seen.append(s.numel()), judge(self, s, t))[1])
    assert scores(Fixed(table), task, "streaming") == pytest.approx(before, nan_ok=True)
    assert max(seen) <= max(3 * 256, 256 * 8)


def test_the_same_targets_are_counted_whatever_the_protocol_and_length(task: LanguageModelling) -> None:
    some = [set(counted(task, name, examples=20)) for name in (*ONCE, "sliding_length_2x", "non_overlapping_length_5")]
    assert all(len(targets) == 20 * 16 for targets in some)
    assert all(targets == some[0] for targets in some)
    rows = task.rows("sliding", 20, 0)
    assert rows.counts["documents_left_out"] > 0
    whole = sum(len(task.documents.of(int(d))) - 1 for d in task.numbers(VALIDATION))
    assert rows.counts["targets_left_out"] == whole - 20 * 16
    left_out = task.rows("overlapping_all_stride_5", 10_000, 0).counts["targets_left_out"]
    assert left_out == whole - len(counted(task, "overlapping_all_stride_5"))


def test_documents_that_are_cut_or_left_out_are_counted(corpus: TextFiles) -> None:
    task = LanguageModelling(corpus, Bytes(), length=16, min_document=40, max_document=100)
    lengths = [len(task.documents.of(int(d))) for d in task.numbers(VALIDATION)]
    assert min(lengths) >= 40
    counts = task.rows("streaming", 10_000, 0).counts
    assert counts["documents_cut"] == sum(length > 101 for length in lengths)
    assert counts["targets_left_out"] == sum(max(0, length - 101) for length in lengths)
    assert task.token_length("streaming") == 101
    about = task.prepare(Unwatched())
    assert about["documents_short"] > 0
    with pytest.raises(
        ConfigurationError, match=r"task.min_document=100000 leaves no document for .*closest that works"
    ):
        LanguageModelling(corpus, Bytes(), min_document=100_000).numbers(VALIDATION)


def test_training_examples_are_stretches_of_training_documents(task: LanguageModelling) -> None:
    batch = task.sample(np.random.default_rng(0), 300, TRAIN)
    assert batch.tokens.shape == (300, 16)
    training = set(task.numbers(TRAIN).tolist())
    for row in range(300):
        text = task.documents.of(int(batch.facts["document"][row])).tobytes()
        length = 16 if batch.padding is None else int((~batch.padding[row]).sum())
        ids = [*batch.tokens[row, :length].tolist(), int(batch.targets[row, length - 1])]
        assert bytes(ids) in text
        assert int(batch.facts["document"][row]) in training
        assert length == min(16, len(text) - 1)
    assert not training & {*task.numbers(VALIDATION).tolist(), *task.numbers(TEST).tolist()}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("slidng", "no set 'slidng'; the closest is sliding"),
        ("in_distribution", "no set 'in_distribution'"),
        (
            "streaming_length_4x",
            "streaming_length_4x reads whole documents; the closest that works is evaluation.sets=streaming",
        ),
        (
            "sliding_stride_17",
            "skips targets of windows of 16; the closest that works is evaluation.sets=sliding_stride_16",
        ),
        ("sliding_stride_0", "closest that works is evaluation.sets=sliding_stride_1"),
        ("test_streaming_stride_4", "so no stride; the closest that works is evaluation.sets=test_streaming"),
        ("sliding_length_0", "closest that works is evaluation.sets=sliding_length_1"),
    ],
)
def test_sets_that_cannot_be(task: LanguageModelling, name: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        task.token_length(name)
    assert says in str(error.value)


def test_names_at_other_lengths(task: LanguageModelling) -> None:
    assert task.at("sliding", 64) == "sliding_length_64"
    assert task.at("test_sliding_stride_4_length_4x", 32) == "test_sliding_stride_4_length_32"
    assert task.at("streaming", 64) == "streaming"
    assert task.token_length("sliding_length_4x") == 65
    assert task.token_length(TRAIN) == 17
    assert task.token_length("streaming") == max(len(task.documents.of(int(d))) for d in task.numbers(VALIDATION))


@pytest.mark.parametrize("option", ["length", "min_document", "max_document"])
def test_options_that_cannot_be(corpus: TextFiles, option: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"task.{option}=0 .*; the closest that works is task.{option}="):
        LanguageModelling(corpus, Bytes(), **{option: 0})


def test_batches_hold_no_more_than_so_many_training_examples(task: LanguageModelling) -> None:
    for name in ("streaming", "sliding_length_4x", "non_overlapping"):
        rows = task.rows(name, 10_000, 0)
        ends = list(rows.batches(8))
        assert [start for start, _ in ends] == [0, *(stop for _, stop in ends[:-1])]
        assert ends[-1][1] == len(rows)
        for start, stop in ends:
            assert stop - start == 1 or rows.take(start, stop).tokens.numel() <= 8 * 16


def test_words_are_those_published_where_all_of_a_part_counts(corpus: TextFiles) -> None:
    table = torch.randn(256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counted = TextFiles(path=corpus.path, validation=0.3, test=0.2)
    counted.words, counted.words_from = {VALIDATION: 1000}, "somebody counted"
    task = LanguageModelling(counted, Bytes(), length=16, max_document=None)
    about = task.prepare(Unwatched())
    assert about["validation_words_published"] == 1000
    assert about["words_from"] == "somebody counted"
    plain = scores(Fixed(table), LanguageModelling(corpus, Bytes(), length=16, max_document=None), "sliding")
    found = scores(Fixed(table), task, "sliding")
    assert found["word_perplexity"] == pytest.approx(math.exp(found["loss"] * found["loss_n"] / 1000))
    assert found["word_perplexity_n"] == 1000
    assert found["word_perplexity_low"] < found["word_perplexity"] < found["word_perplexity_high"]
    assert found["word_perplexity/white_space"] == plain["word_perplexity"]
    # part of it, another part, or each target several times: by the words that were read
    for name, options in (("sliding", {"examples": 10}), ("test_sliding", {}), ("overlapping_all", {})):
        some = scores(Fixed(table), task, name, **options)
        assert "word_perplexity/white_space" not in some
        assert some["word_perplexity_n"] != 1000


def test_details_are_the_documents_and_add_up(task: LanguageModelling) -> None:
    table = torch.randn(256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in ("sliding", "streaming"):
        tally = task.tally(name)
        found = scores(Fixed(table), task, name, tally=tally)
        rows = tally.details()
        assert len(rows) == task.rows(name, 10_000, 0).counts["documents"]
        assert sum(row["nats"] for row in rows) == pytest.approx(found["loss"] * found["loss_n"])
        for key in ("tokens", "bytes"):
            assert sum(row[key] for row in rows) == found["loss_n"]
        for row in rows:
            text = next(
                text for text in map(task.documents.of, task.numbers(VALIDATION)) if row["tokens"] == len(text) - 1
            )
            assert row["bits_per_byte"] == pytest.approx(row["nats"] / row["bytes"] / math.log(2))
            assert (Path(task.corpus.path) / row["document"]).exists()  # type: ignore[attr-defined]
            assert len(row["digest"]) == 16
            assert len(text) > 1


def test_a_corpus_may_ask_for_longer_documents(corpus: TextFiles) -> None:
    longer = TextFiles(path=corpus.path, validation=0.3, test=0.2)
    longer.min_document = 50
    task = LanguageModelling(longer, Bytes(), length=16)
    assert min(task.documents.lengths[task.numbers(VALIDATION)]) >= 50
    longer.min_document = 100_000
    with pytest.raises(ConfigurationError, match=r"corpus\.min_document=100000 leaves no document"):
        LanguageModelling(longer, Bytes(), length=16).numbers(VALIDATION)
