import re
import uuid

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.synthetic import Examples
from lcbench.errors import ConfigurationError
from lcbench.task import prompts
from lcbench.task.needles import ADJECTIVES, DEPTHS, NOUNS, essay
from lcbench.task.passkey_text import FAMILIES, PasskeyText, largest
from tests.oracles import passkey_text as oracle
from tests.oracles.statistics import chi_square, deviation

#: smallest and largest key, whether the filler is in whole units
PASSKEYS = {"landmark": (1, 50_000, False), "longlora": (1, 50_000, False), "infini": (1000, 9999, True)}
#: kind of value; keys, values of each, keys asked; longest unit of the haystack in characters, with its separator
NEEDLES = {
    "niah_single_1": ("numbers", 1, 1, 1, 90),
    "niah_single_2": ("numbers", 1, 1, 1, 30),
    "niah_single_3": ("uuids", 1, 1, 1, 30),
    "niah_multikey_1": ("numbers", 4, 1, 1, 30),
    "niah_multikey_2": ("numbers", 1, 1, 1, 90),
    "niah_multikey_3": ("uuids", 1, 1, 1, 130),
    "niah_multivalue": ("numbers", 1, 4, 1, 30),
    "niah_multiquery": ("numbers", 4, 1, 4, 30),
}
TASK = PasskeyText()


def texts(batch: Batch) -> list[tuple[str, str]]:
    """The prompt and the scored answer of every example."""
    found = []
    for row in range(len(batch)):
        prompt, _, answer = TASK.describe(batch, row).partition("->")
        found.append((prompt, answer))
    return found


def draw(name: str, n: int, seed: int = 0) -> Batch:
    return TASK.sample(np.random.default_rng(seed), n, name)


def test_the_texts_have_the_published_lengths() -> None:
    assert len(prompts.TASK) == 148
    assert len(prompts.UNIT) == 89
    assert len(prompts.UNIT.split()) == 19
    assert len(prompts.FACT.format(key=12345)) == 58
    assert len(prompts.QUESTION) == 37


@given(
    family=st.sampled_from(list(PASSKEYS)),
    length=st.integers(254, 3000),
    depth=st.none() | st.integers(0, 100),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_passkey_prompts_are_as_defined(family: str, length: int, depth: int | None, seed: int) -> None:
    name = f"{family}_length_{length}" + ("" if depth is None else f"_depth_{depth}")
    batch = draw(name, 4, seed)
    smallest, largest_key, whole = PASSKEYS[family]
    for row, (prompt, answer) in enumerate(texts(batch)):
        first, second = oracle.check_passkey(prompt, answer.removesuffix("."), smallest, largest_key, whole)
        assert answer.endswith(".") == (family == "landmark")
        total = len(prompt) + len(answer)
        assert total == batch.facts["length"][row].item()
        # within one unit of the target
        assert length - (2 * 90 if whole and not first + second else 90 if whole else 0) <= total <= length
        unit = 90 if whole else 1
        if depth is not None:
            assert abs(first - (first + second) * depth / 100) <= unit
        assert batch.facts["distance"][row].item() == second + 2
        assert batch.facts["depth"][row].item() == pytest.approx(100 * first / max(1, first + second), abs=100 * unit)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.replace("irrelevant text.", "text."), "three sentences"),
        (lambda p: p + " ", "question"),
        (lambda p: p.replace("key is 9054.", "key is 9055."), "one key twice"),
        (lambda p: p.replace("9054", "0954"), "begins with 0"),
        (lambda p: p.replace("9054", "50001"), "out of range"),
        (lambda p: p.replace("sky is blue", "sky is red", 1), "filler"),
        (lambda p: p.replace("There and", "3 and", 1), "digits elsewhere"),
        (lambda p: p.replace("\n", " ", 1), "five parts"),
    ],
)
def test_the_checker_rejects_broken_prompts(change, reason) -> None:
    family = FAMILIES["infini"]
    prompt = family.write(prompts.Hidden(9054, 0.5, None), 4).text
    oracle.check_passkey(prompt, " 9054", 1, 50_000, whole=True)
    with pytest.raises(ValueError, match=reason):
        oracle.check_passkey(change(prompt), " 9054", 1, 50_000, whole=True)
    with pytest.raises(ValueError, match="not the key"):
        oracle.check_passkey(prompt, " 9053", 1, 50_000)
    cut = FAMILIES["landmark"].write(prompts.Hidden(9054, 0.5, None), 100).text
    with pytest.raises(ValueError, match="whole units"):
        oracle.check_passkey(cut, " 9054", 1, 50_000, whole=True)


@given(
    name=st.sampled_from(list(NEEDLES)),
    more=st.integers(0, 2000),
    depth=st.none() | st.integers(0, 100),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_needle_prompts_are_as_defined(name: str, more: int, depth: int | None, seed: int) -> None:
    kind, keys, values, queries, unit = NEEDLES[name]
    length = TASK._least(name) + more
    batch = draw(f"{name}_length_{length}" + ("" if depth is None else f"_depth_{depth}"), 3, seed)
    for row, (prompt, answer) in enumerate(texts(batch)):
        answers = answer.removeprefix(" ").split(", ")
        places = oracle.check_needles(prompt, answers, kind, keys, values, queries)
        total = len(prompt) + len(answer)
        assert total == batch.facts["length"][row].item()
        assert length - unit <= total <= length
        if name not in ("niah_multikey_2", "niah_multikey_3"):
            assert len(places) == keys * values
        for value in answers:
            assert re.fullmatch(r"[1-9]\d{6}", value) if kind == "numbers" else uuid.UUID(value).version == 4


@pytest.mark.parametrize("name", NEEDLES)
@pytest.mark.parametrize("depth", [0, 30, 100])
def test_a_needles_depth_is_reproduced_to_one_sentence(name: str, depth: int) -> None:
    batch = draw(f"{name}_length_4k_depth_{depth}", 5)
    for row, (prompt, answer) in enumerate(texts(batch)):
        context = prompt.partition("\n")[2].rpartition("\n")[0]
        values = answer.removeprefix(" ").split(", ")
        # the last sentence of an essay is cut, so that it may lack its full stop
        units = re.split(r"\n" if "\n" in context else r"(?<=\.) (?=[A-Z])| (?=One of the special magic)", context)
        if name == "niah_single_1":
            assert len(set(units)) == 2
        needles = [i for i, unit in enumerate(units) if any(f" is: {value}." in unit for value in values)]
        others = [i for i, unit in enumerate(units) if unit.startswith("One of the special magic")]
        if name in ("niah_multikey_2", "niah_multikey_3"):
            others = needles
        before = needles[0] - sum(i < needles[0] for i in others)
        haystack = len(units) - len(others)
        assert abs(before - haystack * depth / 100) <= 1
        assert batch.facts["depth"][row].item() == pytest.approx(100 * before / haystack, abs=1e-3)


def test_keys_and_places_are_uniform() -> None:
    batch = draw("landmark_filler_9", 20_000)
    digits = [int(answer.strip(" .")) for _, answer in texts(batch)]
    assert abs(chi_square(np.bincount((np.array(digits) - 1) // 1000, minlength=50).tolist(), [1.0] * 50)) < 4
    assert abs(deviation(sum(key >= 10_000 for key in digits), 20_000, 40_001 / 50_000)) < 4
    before = (batch.facts["depth"].numpy() * 9 / 100).round().astype(int)
    assert abs(chi_square(np.bincount(before, minlength=10).tolist(), [1.0] * 10)) < 4
    infini = draw("infini_length_1k", 5000)
    units = (infini.facts["depth"].numpy() * 8 / 100).round().astype(int)
    assert abs(chi_square(np.bincount(units, minlength=9).tolist(), [1.0] * 9)) < 4


def test_needles_are_uniform() -> None:
    batch = draw("niah_multikey_2_length_1k", 3000)
    keys = [re.search(r"number for (\S+)-(\S+) mentioned", prompt) for prompt, _ in texts(batch)]
    assert abs(chi_square([sum(k[1] == a for k in keys) for a in ADJECTIVES], [1.0] * len(ADJECTIVES))) < 4
    assert abs(chi_square([sum(k[2] == n for k in keys) for n in NOUNS], [1.0] * len(NOUNS))) < 4
    depth = draw("niah_single_2_length_20k", 1000).facts["depth"].numpy()
    nearest = np.abs(depth[:, None] - np.array(DEPTHS)).argmin(1)
    assert np.abs(depth - np.array(DEPTHS)[nearest]).max() < 0.7, "one of some 190 sentences"
    assert abs(chi_square(np.bincount(nearest, minlength=40).tolist(), [1.0] * 40)) < 4


def test_which_key_is_asked_does_not_depend_on_where_it_stands() -> None:
    batch = draw("niah_multikey_1_length_1k", 2000)
    ranks = []
    for prompt, answer in texts(batch):
        values = re.findall(r" is: (\d+)\.", prompt)
        ranks.append(values.index(answer.strip()))
    assert abs(chi_square(np.bincount(ranks, minlength=4).tolist(), [1.0] * 4)) < 4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_solver_is_right_in_every_protocol(family: str) -> None:
    for name in (f"{family}_length_1500", f"{family}_length_1500_depth_100"):
        batch = draw(name, 20)
        solved = TASK.solve(batch.tokens)
        assert torch.equal(solved[batch.scored], batch.targets[batch.scored])
        assert not any(wrong.any() for wrong in TASK.outcomes(batch, solved).values())


def test_a_constant_answer_is_almost_always_wrong() -> None:
    batch = draw("longlora_filler_0", 20_000)
    predictions = torch.zeros_like(batch.tokens)
    start = batch.scored.long().argmax(1)
    for offset, byte in enumerate(b" 12345"):
        predictions[torch.arange(len(batch)), (start + offset).clamp(max=predictions.shape[1] - 1)] = byte
    right = ~TASK.outcomes(batch, predictions)["error"]
    assert right.float().mean() < 1e-3


def test_landmark_needs_the_space_the_key_and_its_end() -> None:
    batch = draw("landmark_length_400", 6)
    said = batch.targets.clone()
    places = [row.nonzero()[:, 0] for row in batch.scored]
    said[1, places[1][-1]] = ord(",")  # any end is one
    said[2, places[2][-1]] = ord("7")  # the run of digits goes on
    said[3, places[3][1]] = ord("0") + (int(said[3, places[3][1]]) - 47) % 10
    said[4, places[4][0]] = ord(":")
    outcomes = TASK.outcomes(batch, said)
    assert outcomes["error"].tolist() == [False, False, True, True, True, False]
    assert outcomes["token_error"].sum() == 1
    for row in (0, 1, 2, 3):
        text = TASK.tokenizer.decode(said[row, places[row]].numpy())
        key = int(texts(batch)[row][1].strip(" ."))
        assert prompts.landmark_correct(text + " and", key) != outcomes["error"][row].item()


def test_infini_counts_tokens_and_needles_count_values() -> None:
    batch = draw("infini_length_400", 1)
    said = batch.targets.clone()
    place = int(batch.scored[0].nonzero()[2, 0])
    said[0, place] = ord("x")
    outcomes = TASK.outcomes(batch, said)
    assert outcomes["token_error"].tolist() == [False, True, False, False]
    assert outcomes["error"].tolist() == [True]

    batch = draw("niah_multivalue_length_1k", 2)
    said = batch.targets.clone()
    place = int(batch.scored[1].nonzero()[:, 0][12])  # in the second value
    said[1, place] = ord("x")
    outcomes = TASK.outcomes(batch, said)
    assert outcomes["error"].tolist() == [False] * 5 + [True, False, False]
    assert outcomes["sequence_error"].tolist() == [False, True]
    assert len(outcomes["token_error"]) == 56
    text = TASK.tokenizer.decode(said[1][batch.scored[1]].numpy())
    assert prompts.ruler_score(text, texts(batch)[1][1].strip().split(", ")) == 0.75


@pytest.mark.parametrize(
    ("continuation", "correct"),
    [
        (" 9054. Remember", True),
        (" 09054 and 3", True),
        ("\nthe key, of course: 9054", True),
        (" 90541", False),
        (" 905 4", False),
        (" 3, 9054", False),
        (" nothing", False),
        ("", False),
    ],
)
def test_landmarks_rule(continuation: str, correct: bool) -> None:
    assert prompts.landmark_correct(continuation, 9054) == correct


def test_the_other_rules() -> None:
    assert prompts.longlora_correct([1, 2, 3], [1, 2, 3])
    assert not prompts.longlora_correct([1, 2, 4], [1, 2, 3])
    assert not prompts.longlora_correct([1, 2], [1, 2, 3])
    assert prompts.infini_accuracy([1, 9, 3, 4], [1, 2, 3, 4]) == 0.75
    assert prompts.infini_accuracy([1], [1, 2, 3, 4]) == 0.25
    assert prompts.ruler_score("they are ABC-1 and 7", ["abc-1", "8", "7", "9"]) == 0.5
    assert [prompts.longlora_characters(i) for i in (1, 8)] == [3 * 1024, 29 * 1024]


def test_essays_are_prose_that_goes_on() -> None:
    for words in (0, 1, 50, 10_000, 100_000):
        sentences = essay(words)
        assert len(" ".join(sentences).split()) == words
        assert not any(c.isdigit() for sentence in sentences for c in sentence)
        assert all(sentence.endswith(".") for sentence in sentences[:-1])
    assert essay(1000) == essay(2000)[: len(essay(1000)) - 1] + essay(1000)[-1:]


class Words:
    """A tokenizer of words and the gaps between them, as an example of one that is not bytes."""

    def __init__(self) -> None:
        names = [*ADJECTIVES, *NOUNS, *re.findall(r"[A-Za-z]+", f"{prompts.TASK} {prompts.UNIT} {prompts.QUESTION}")]
        names += [*map(chr, range(128)), "Remember", "it"]
        self.vocabulary = tuple(dict.fromkeys(names))
        self.ids = {symbol: token for token, symbol in enumerate(self.vocabulary)}

    def encode(self, text: str) -> np.ndarray:
        found: list[int] = []
        for word in re.findall(r"[A-Za-z]+|.", text, re.DOTALL):
            found += [self.ids[word]] if word in self.ids else [self.ids[c] for c in word]
        return np.array(found, np.int64)

    def decode(self, ids: np.ndarray) -> str:
        return "".join(self.vocabulary[token] for token in ids)


@pytest.mark.parametrize("family", ["landmark", "infini", "niah_multiquery", "niah_multikey_2"])
def test_another_tokenizer(family: str) -> None:
    task = PasskeyText(Words(), length=900)
    batch = task.sample(np.random.default_rng(0), 10, f"{family}_length_900")
    assert int(batch.facts["length"].max()) <= 900
    assert int(batch.facts["length"].min()) > 900 - 50
    solved = task.solve(batch.tokens)
    assert torch.equal(solved[batch.scored], batch.targets[batch.scored])


@given(slope=st.integers(1, 9), offset=st.integers(0, 50), limit=st.integers(0, 500), most=st.integers(1, 300))
def test_the_largest_size(slope: int, offset: int, limit: int, most: int) -> None:
    def count(size: int) -> int:
        return offset + size * slope + size // 3 * 2

    fitting = [size for size in range(most + 2) if count(size) <= limit]
    assert largest(count, limit, most) == (max(fitting) if fitting else None)


@pytest.mark.parametrize("family", ["landmark", "niah_multikey_3", "niah_single_2"])
def test_a_million_bytes_are_one_example_a_block(family: str) -> None:
    examples = Examples(TASK, 0, f"{family}_length_1M_depth_50")
    assert examples.block_size == 1
    batch = examples.take(2, 3)
    assert len(batch) == 1
    assert 999_800 <= batch.facts["length"].item() <= 1_000_000
    assert torch.equal(TASK.solve(batch.tokens)[batch.scored], batch.targets[batch.scored])
    assert torch.equal(batch.tokens, Examples(TASK, 0, f"{family}_length_1M_depth_50").take(2, 3).tokens)


def test_sets_and_lengths() -> None:
    assert TASK.token_length("landmark_filler_5k") == 5000 + TASK._least("landmark")
    assert draw("landmark_filler_5k_depth_100", 3).facts["depth"].tolist() == [100.0] * 3
    assert TASK.at("infini_depth_50", 32_000) == "infini_length_32000_depth_50"
    assert TASK.at("landmark_filler_5k", 1000) == "landmark_length_1000"
    assert TASK.at("in_distribution", 1000) == "length_1000"
    lengths = PasskeyText(length=600, min_length=300).sample(np.random.default_rng(0), 200, TRAIN).facts["length"]
    assert int(lengths.min()) < 320
    assert int(lengths.max()) > 580


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"length": 200},
            "task.length=200 is shorter than the 254 tokens of a landmark prompt .* cut; .* task.length=254",
        ),
        ({"min_length": 200}, "task.min_length=200 is shorter"),
        ({"min_length": 600}, "task.min_length=600 is above task.length=512"),
    ],
)
def test_mistakes(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        PasskeyText(**options)


def test_sets_that_are_none() -> None:
    with pytest.raises(ConfigurationError, match=r"niah_multiquery_length_700 is shorter than the 729 .* cut; .*_729"):
        TASK.token_length("niah_multiquery_length_700")
    with pytest.raises(ConfigurationError, match="niah_multiquery is shorter than the 729 tokens"):
        TASK.token_length("niah_multiquery")
    with pytest.raises(ConfigurationError, match="no set 'niah_multikey_4_length_1k'; the closest is niah_multikey_"):
        TASK.token_length("niah_multikey_4_length_1k")
    with pytest.raises(ConfigurationError, match="no set 'infini_filler_5k'"):
        TASK.token_length("infini_filler_5k")
