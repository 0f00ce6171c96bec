import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.dataset.base import TRAIN, Batch
from lcbench.dataset.synthetic import Examples, Synthetic
from lcbench.errors import ConfigurationError
from lcbench.task.passkey import Passkey
from tests.oracles import passkey as oracle
from tests.oracles.statistics import chi_square, deviation, difference


def strings(task: Passkey, batch: Batch) -> list[list[str]]:
    """Every example with its answer, without padding."""
    whole = torch.cat([batch.tokens, batch.targets[:, -1:]], 1)
    lengths = batch.facts["length"].tolist()
    return [
        [task.vocabulary[token] for token in row[:length]] for row, length in zip(whole.tolist(), lengths, strict=True)
    ]


def places_of(string: list[str]) -> list[int]:
    """Tokens of filler before each fact."""
    outside = [word for word in string if word in oracle.UNIT or word == "key"]
    return [place - k for k, place in enumerate(i for i, word in enumerate(outside) if word == "key")]


@given(
    digits=st.integers(1, 5),
    keys=st.integers(1, 4),
    values=st.integers(1, 2),
    mentions=st.integers(1, 2),
    more=st.integers(0, 40),
    name=st.sampled_from([TRAIN, "in_distribution", "noise", "depth_50", "length_200", "noise_length_200_depth_100"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_every_string_is_in_the_language_and_scored_at_its_answer(
    digits: int, keys: int, values: int, mentions: int, more: int, name: str, seed: int
) -> None:
    options = {"digits": digits, "keys": keys, "values": values, "mentions": mentions}
    fixed = Passkey(**options, length=10_000).fixed
    task = Passkey(**options, length=fixed + more, min_length=fixed)
    if "200" in name and fixed > 200:
        return
    batch = task.sample(np.random.default_rng(seed), 8, name)
    answer = values * digits
    for row, string in enumerate(strings(task, batch)):
        oracle.check(string, digits, keys, values, mentions, noise="noise" in name)
        assert fixed <= len(string) <= task.token_length(name)
        assert "200" not in name or len(string) == 200
        scored = batch.scored[row].nonzero()[:, 0]
        assert scored.tolist() == list(range(len(string) - 1 - answer, len(string) - 1))
        assert [task.vocabulary[t] for t in batch.targets[row, scored]] == string[-answer:]
        number = "".join(string[-answer:][:digits])
        assert "".join(string[:-answer]).count(number) == mentions, "it stands in its fact and nowhere else"


@pytest.mark.parametrize(
    ("string", "reason"),
    [
        ("a b key 4 0 same 4 0 end a ask 4 1", "what the key had"),
        ("a b key 4 0 same 4 1 end a ask 4 0", "two numbers"),
        ("a b key 4 0 end a ask 4 0", "as often"),
        ("a c key 4 0 same 4 0 end a ask 4 0", "from its beginning"),
        ("a b key 4 0 same 4 0 end c ask 4 0", "from its beginning"),
        ("a b key 4 0 same 4 0 a ask 4 0", "does not end"),
        ("a 7 key 4 0 same 4 0 end a ask 4 0", "no filler"),
        ("a b key 4 a same 4 0 end a ask 4 0", "broken"),
        ("a b key 4 0 same 4 0 end a", "no question"),
        ("a b a ask 4 0", "from its beginning"),
        ("a b ask 4 0", "number of facts"),
        ("a key 4 0 same 4 0 end key 4 1 same 4 1 end ask 4 0", "number of facts"),
    ],
)
def test_the_checker_rejects_broken_strings(string: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        oracle.check(string.split(), 2, 1, 1, 2)


@pytest.mark.parametrize(
    ("string", "reason"),
    [
        ("key A 4 end key A 5 end ask A 4 5", "do not have their facts"),
        ("key A 4 end key B 5 end ask A 5", "what the key had"),
        ("key A 4 end key B 4 end ask A 4", "numbers repeat"),
    ],
)
def test_the_checker_rejects_broken_strings_of_two_keys(string: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        oracle.check(string.split(), 1, 2, 1, 1)


@given(depth=st.integers(0, 100), length=st.integers(60, 2000), values=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_depth_is_reproduced_to_one_token(depth: int, length: int, values: int) -> None:
    task = Passkey(keys=2, values=values, mentions=1)
    if length < task.fixed:
        return
    batch = task.sample(np.random.default_rng(depth), 20, f"length_{length}_depth_{depth}")
    filler = length - task.fixed
    for row, string in enumerate(strings(task, batch)):
        asked = string[string.index("ask") + 1]
        facts = [i for i, word in enumerate(string) if word == "key"]
        first = next(k for k, i in enumerate(facts) if string[i + 1] == asked)
        place = places_of(string)[first]
        assert abs(place - filler * depth / 100) <= 0.5
        assert batch.facts["depth"][row].item() == pytest.approx(100 * place / max(filler, 1), abs=1e-4)
        assert batch.facts["distance"][row].item() == string.index("ask") - facts[first] - task.fact
        assert batch.facts["length"][row].item() == length


def test_start_middle_and_end() -> None:
    task = Passkey()
    batch = task.sample(np.random.default_rng(0), 5, "length_100_depth_0")
    assert all(string[0] == "key" for string in strings(task, batch))
    batch = task.sample(np.random.default_rng(0), 5, "length_100_depth_100")
    assert all(string[-5:-3] == ["end", "ask"] for string in strings(task, batch))
    assert (batch.facts["distance"] == 0).all()


def test_lengths_places_and_numbers_are_uniform() -> None:
    task = Passkey(length=40, min_length=31, digits=2)
    batch = task.sample(np.random.default_rng(0), 20_000, TRAIN)
    lengths = batch.facts["length"].numpy()
    assert abs(chi_square(np.bincount(lengths - 31, minlength=10).tolist(), [1.0] * 10)) < 4
    numbers = (batch.targets[batch.scored].view(-1, 2) - 12).numpy() @ np.array([10, 1])
    assert abs(chi_square(np.bincount(numbers, minlength=100).tolist(), [1.0] * 100)) < 4
    place = (batch.tokens == task.vocabulary.index("key")).long().argmax(1).numpy()
    for length in (31, 40):
        filler = length - task.fixed
        counts = np.bincount(place[lengths == length], minlength=filler + 1)
        assert len(counts) == filler + 1
        assert abs(chi_square(counts.tolist(), [1.0] * (filler + 1))) < 4


def test_several_facts_stand_where_the_literal_generator_puts_them() -> None:
    """Which key is asked, in which order facts stand, and where, against one token at a time."""
    task = Passkey(length=30, min_length=30, digits=1, keys=2, values=2, mentions=1)
    filler = 30 - task.fixed
    rng = random.Random(0)

    def code(string: list[str]) -> int:
        asked = string[string.index("ask") + 1]
        facts = [i for i, word in enumerate(string) if word == "key"]
        order = [string[i + 1] == asked for i in facts]
        places = places_of(string)
        return (places[0] * (filler + 1) + places[-1]) * 16 + sum(2**k * hit for k, hit in enumerate(order))

    size = (filler + 1) ** 2 * 16
    ours = np.bincount(
        [code(s) for s in strings(task, task.sample(np.random.default_rng(1), 6000, TRAIN))], minlength=size
    )
    literal = [oracle.generate(rng, 30, 1, 2, 2, 1) for _ in range(6000)]
    for string in literal[:200]:
        oracle.check(string, 1, 2, 2, 1)
    theirs = np.bincount([code(string) for string in literal], minlength=size)
    assert abs(difference(ours.tolist(), theirs.tolist())) < 4


def test_noise_is_uniform_and_holds_no_digit() -> None:
    task = Passkey(haystack="noise")
    batch = task.sample(np.random.default_rng(2), 500, "length_200_depth_100")
    filler = batch.tokens[:, : 200 - task.fixed].numpy()
    assert filler.max() < 12
    assert abs(chi_square(np.bincount(filler.reshape(-1), minlength=12).tolist(), [1.0] * 12)) < 4
    unit = task.sample(np.random.default_rng(2), 5, "unit_length_200")
    oracle.check(strings(task, unit)[0], 3, 1, 1, 2)


def test_a_constant_answer_is_right_as_often_as_there_are_numbers() -> None:
    task = Passkey(digits=2)
    batch = task.sample(np.random.default_rng(3), 20_000, "length_64")
    outcomes = task.outcomes(batch, torch.full_like(batch.tokens, task.vocabulary.index("7")))
    assert abs(deviation(20_000 - int(outcomes["error"].sum()), 20_000, 0.01)) < 4
    assert abs(deviation(int(outcomes["token_error"].sum()), 40_000, 0.9)) < 6
    assert task.chance == {"error": pytest.approx(0.99), "token_error": 0.9}


def test_saying_any_number_of_the_example_scores_chance() -> None:
    task = Passkey(keys=3, mentions=1, digits=2)
    batch = task.sample(np.random.default_rng(4), 20_000, "length_64")
    place = (batch.tokens == task.vocabulary.index("key")).long().argmax(1)  # the first fact, whosever it is
    said = batch.tokens.gather(1, place[:, None] + torch.tensor([2, 3]))
    predictions = torch.zeros_like(batch.tokens)
    predictions[batch.scored] = said.flatten()
    outcomes = task.outcomes(batch, predictions)
    for name, chance in task.chance.items():
        assert abs(deviation(int(outcomes[name].sum()), len(outcomes[name]), chance)) < 4 * 2**0.5


def test_metrics_count_numbers_digits_and_examples() -> None:
    task = Passkey(values=2, digits=2, mentions=1)
    batch = task.sample(np.random.default_rng(5), 3, "length_64_depth_50")
    predictions = batch.targets.clone()
    first = int(batch.scored[1].nonzero()[0, 0])
    predictions[1, first + 2] = 0
    outcomes = task.outcomes(batch, predictions)
    assert outcomes["error"].tolist() == [False, False, False, True, False, False]
    assert outcomes["token_error"].sum() == 1
    assert len(outcomes["token_error"]) == 12
    assert outcomes["sequence_error"].tolist() == [False, True, False]
    assert outcomes["error/depth_40_59"].tolist() == outcomes["error"].tolist()


def test_changing_the_filler_or_another_keys_number_changes_no_answer_and_changing_the_fact_does() -> None:
    task = Passkey(keys=2, mentions=1)
    batch = task.sample(np.random.default_rng(6), 50, "length_100")
    solved = task.solve(batch.tokens)[batch.scored].view(50, 3)
    key = task.vocabulary.index("key")
    question = batch.tokens == task.vocabulary.index("ask")
    asked = batch.tokens[question.roll(1, 1)]
    digit = (batch.tokens >= 12) & (batch.tokens < 22) & ~batch.scored
    is_asked = torch.zeros_like(digit)
    for row in range(50):
        for place in (batch.tokens[row] == key).nonzero()[:, 0].tolist():
            is_asked[row, place + 2 : place + 5] = batch.tokens[row, place + 1] == asked[row]
    others = digit & ~is_asked
    changed = torch.where(others, 12 + (batch.tokens - 11) % 10, batch.tokens)
    changed = torch.where(changed < 12, 5, changed)
    assert torch.equal(task.solve(changed)[batch.scored].view(50, 3), solved)
    changed = torch.where(is_asked & digit, 12 + (batch.tokens - 11) % 10, batch.tokens)
    assert (task.solve(changed)[batch.scored].view(50, 3) != solved).all()


def test_a_million_tokens_are_one_example_a_block() -> None:
    task = Passkey()
    examples = Examples(task, 0, "length_1M_depth_0")
    assert examples.block_size == 1
    batch = examples.take(3, 4)
    assert tuple(batch.tokens.shape) == (1, 999_999)
    assert batch.padding is None
    assert batch.scored[0].nonzero()[:, 0].tolist() == [999_996, 999_997, 999_998]
    assert torch.equal(task.solve(batch.tokens)[batch.scored], batch.targets[batch.scored])
    assert batch.tokens.untyped_storage().data_ptr() == batch.targets.untyped_storage().data_ptr(), "held once"
    again = Examples(task, 0, "length_1M_depth_0").take(3, 4)
    assert torch.equal(batch.tokens, again.tokens)


def test_names_of_sets() -> None:
    task = Passkey()
    assert task.token_length("length_8x_depth_50") == 1024
    assert task.token_length("depth_50") == task.length
    assert task.at("depth_50", 1_000_000) == "length_1000000_depth_50"
    assert task.at("length_2x_depth_0", 500) == "length_500_depth_0"
    assert task.at("noise", 500) == "noise_length_500"


def test_the_loss_is_at_the_answer_or_everywhere() -> None:
    answer = Passkey().sample(np.random.default_rng(7), 20, TRAIN)
    everything = Passkey(loss="everything").sample(np.random.default_rng(7), 20, TRAIN)
    assert torch.equal(answer.supervised, answer.scored)
    assert everything.padding is not None
    assert torch.equal(everything.supervised, ~everything.padding)
    assert torch.equal(answer.tokens, everything.tokens)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"length": 12}, "task.length=12 is shorter than the 13 tokens of 1 fact, .* be cut; .* task.length=13"),
        ({"min_length": 12}, "task.min_length=12 is shorter"),
        ({"same_length": 0}, "task.same_length=0 is no number of examples; .* task.same_length=1"),
        ({"min_length": 129}, "task.min_length=129 is above task.length=128; .* task.min_length=128"),
        ({"digits": 0}, "task.digits=0 is not between 1 and 9; .* task.digits=1"),
        ({"keys": 17}, "task.keys=17 is not between 1 and 16; .* task.keys=16"),
        ({"mentions": 3}, "task.mentions=3"),
        ({"digits": 1, "keys": 4, "values": 3}, "task.values=3 is not between 1 and the 2 .* task.values=2"),
    ],
)
def test_mistakes(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Passkey(**options)


def test_a_set_that_would_be_cut_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"noise_length_10_depth_5 is shorter than .* cut; .*noise_length_13_d"
    ):
        Passkey().token_length("noise_length_10_depth_5")
    with pytest.raises(ConfigurationError, match="no set 'depth_101'"):
        Passkey().token_length("depth_101")


def test_every_doubling_of_length_is_as_frequent_and_batches_have_one_length():
    task = Passkey(length=1023, min_length=64, lengths="log_uniform", same_length=8)
    lengths = task.sample(np.random.default_rng(0), 64_000, TRAIN).facts["length"].view(-1, 8)
    assert bool((lengths == lengths[:, :1]).all())
    # 64 to 127, 128 to 255, 256 to 511, 512 to 1023: a quarter each, within 4 sigma
    shares = torch.bincount(lengths[:, 0].log2().floor().long(), minlength=10)[6:] / len(lengths)
    assert len(shares) == 4
    assert bool(((shares - 0.25).abs() < 4 * (0.25 * 0.75 / len(lengths)) ** 0.5).all())
    assert len(task.sample(np.random.default_rng(0), 64, "in_distribution").facts["length"].unique()) > 8
    batch = Synthetic(task, 0, 8).batch(5)
    assert batch.padding is None
    assert batch.tokens.shape == (8, int(batch.facts["length"][0]) - 1)
