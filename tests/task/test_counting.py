import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.dataset.base import TRAIN, Batch
from lcbench.errors import ConfigurationError
from lcbench.task.counting import Counting
from tests.oracles import counting as oracle
from tests.oracles.statistics import chi_square, deviation, difference


def words(task: Counting, batch: Batch) -> list[list[str]]:
    """The examples as words, answer included."""
    rows = []
    for row in range(len(batch)):
        kept = slice(None) if batch.padding is None else ~batch.padding[row]
        tokens = batch.tokens[row, kept].tolist() + batch.targets[row, batch.scored[row]].tolist()
        rows.append([task.vocabulary[token] for token in tokens])
    return rows


@given(
    variables=st.integers(1, 8),
    fewest=st.integers(1, 5),
    more=st.integers(0, 60),
    seed=st.integers(0, 1000),
    name=st.sampled_from([TRAIN, "in_distribution", "length_2x", "length_4x", "more_pass", "more_pass_length_2x"]),
)
@settings(max_examples=80, deadline=None)
def test_every_example_is_a_program_with_its_answer(
    variables: int, fewest: int, more: int, seed: int, name: str
) -> None:
    most = fewest + more
    task = Counting(length=300, variables=variables, min_statements=fewest, max_statements=most)
    batch = task.sample(np.random.default_rng(seed), 6, name)
    times = 4 if "4x" in name else 2 if "2x" in name else 1
    low, high = (fewest, most) if times == 1 else (times * most // 2, times * most)
    for row, program in enumerate(words(task, batch)):
        statements, printed, answer = oracle.parse(program)
        assert oracle.words(statements, printed, answer) == program
        assert low <= len(statements) <= high
        assert len(statements) == batch.facts["statements"][row]
        assert len(program) <= task.token_length(name)
        assert batch.scored[row].nonzero()[:, 0].tolist() == [len(program) - 2]
    assert torch.equal(task.solve(batch.tokens)[batch.scored], batch.targets[batch.scored])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = 0 ; a ++; print a 2", "wrong"),
        ("a ++; a = 0 ; print a 0", "never set"),
        ("a = 0 ; print b 0", "never set"),
        ("a = 0 ; a ++; print a", "does not end"),
        ("a = 1 ; print a 1", "no statement"),
        ("a = 0 ; " + "a ++; " * 11 + "print a 11", "above 10"),
    ],
)
def test_the_checker_rejects_broken_programs(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        oracle.parse(text.split())
    assert oracle.parse(["a", "=", "0", ";", "pass;", "a", "++;", "print", "a", "1"])[2] == 1


def counts(programs: list[list[str]]) -> dict[str, Counter]:
    """Histograms that a wrong grammar would change."""
    found: dict[str, Counter] = {
        name: Counter() for name in ("answer", "words", "statements", "printed", "gap", "known")
    }
    for program in programs:
        statements, printed, answer = oracle.parse(program)
        operations = [operation for operation, _ in statements]
        found["answer"][answer] += 1
        found["words"][len(program) // 5] += 1
        found["statements"][len(statements) // 5] += 1
        found["printed"][printed] += 1
        first = operations.index("set")
        found["gap"][min(first // 4, 20)] += 1
        found["known"][len({variable for operation, variable in statements if operation == "set"})] += 1
    return found


@pytest.mark.parametrize(
    ("variables", "weights", "name"),
    [(1, (1, 50, 7), TRAIN), (3, (1, 50, 7), TRAIN), (5, (1, 50, 7), "length_2x"), (3, (1, 100, 7), "more_pass")],
)
def test_programs_are_distributed_as_the_literal_generators(
    variables: int, weights: tuple[int, int, int], name: str
) -> None:
    task = Counting(length=200, variables=variables, max_statements=80)
    batch = task.sample(np.random.default_rng(variables), 4000, name)
    fewest, most = (80, 160) if name == "length_2x" else (3, 80)
    rng = random.Random(variables)
    literal = [oracle.words(*oracle.generate(rng, variables, fewest, most, weights)) for _ in range(2000)]
    ours, theirs = counts(words(task, batch)), counts(literal)
    for fact in ours:
        support = sorted(set(ours[fact]) | set(theirs[fact]))
        common = [each for each in support if ours[fact][each] + theirs[fact][each] >= 15]
        if len(common) > 1:
            a, b = ([each[fact][value] for value in common] for each in (ours, theirs))
            assert abs(difference(a, b)) < 4, fact


@pytest.mark.parametrize("variables", [1, 3, 5])
def test_the_papers_size_has_the_known_facts(variables: int) -> None:
    """Figures of 20,000 programs of the literal generator; here 6000, so within about 4 standard deviations."""
    task = Counting(length=700, variables=variables, max_statements=512)
    batch = task.sample(np.random.default_rng(variables), 6000, TRAIN)
    statements = batch.facts["statements"].float()
    assert statements.mean().item() == pytest.approx({1: 277, 3: 280, 5: 278}[variables], abs=8)
    assert batch.padding is not None
    tokens = (~batch.padding).sum(1) + 1
    assert tokens.float().mean().item() == pytest.approx({1: 315, 3: 318, 5: 316}[variables], abs=9)
    assert (tokens > 512).float().mean().item() == pytest.approx(0.14, abs=0.02)
    answers = torch.bincount(batch.targets[batch.scored] - 7, minlength=11) / 6000
    assert answers[10].item() == pytest.approx(0.205, abs=0.022)
    if variables == 1:
        known = [0.147, 0.121, 0.107, 0.090, 0.080, 0.064, 0.058, 0.049, 0.044, 0.037, 0.201]
        assert answers.tolist() == pytest.approx(known, abs=0.022)


def test_before_the_first_set_increments_are_drawn_again() -> None:
    """So a statement is a set with probability 1/51 and a pass otherwise, in programs long enough to set something."""
    task = Counting(length=700, variables=3, min_statements=300, max_statements=300)
    batch = task.sample(np.random.default_rng(0), 10_000, TRAIN)
    passes = (batch.tokens == task.vocabulary.index("=")).long().argmax(1) - 1
    expected = [(50 / 51) ** (30 * tens) for tens in range(10)]
    assert abs(chi_square(torch.bincount(passes // 30, minlength=10).tolist(), expected)) < 4


@pytest.mark.parametrize(("name", "weights"), [(TRAIN, (1, 50, 7)), ("more_pass", (1, 100, 7))])
def test_accepted_statements_have_their_weights_where_none_can_be_rejected(
    name: str, weights: tuple[int, int, int]
) -> None:
    task = Counting(length=700, variables=3, min_statements=200, max_statements=300)
    found: Counter = Counter()
    variables: Counter = Counter()
    for program in words(task, task.sample(np.random.default_rng(0), 2000, name)):
        statements, _, _ = oracle.parse(program)
        values: dict[str, int] = {}
        for operation, variable in statements:
            if len(values) == 3 and max(values.values()) < 10:
                found[operation] += 1
                if operation != "pass":
                    variables[operation, variable] += 1
            if operation == "set":
                values[variable] = 0
            if operation == "increment":
                values[variable] += 1
    total = sum(found.values())
    for operation, weight in zip(("set", "pass", "increment"), weights, strict=True):
        assert abs(deviation(found[operation], total, weight / sum(weights))) < 4
    for operation in ("set", "increment"):
        assert abs(chi_square([variables[operation, variable] for variable in "abc"], [1.0] * 3)) < 4


def test_long_programs_lose_their_left_end() -> None:
    whole = Counting(length=700, variables=3, max_statements=512)
    cut = Counting(length=512, variables=3, max_statements=512)
    long, short = (task.sample(np.random.default_rng(1), 500, TRAIN) for task in (whole, cut))
    assert short.tokens.shape[1] == 511
    lost = 0
    for before, after in zip(words(whole, long), words(cut, short), strict=True):
        assert after == before[-512:]
        lost += len(before) > 512
    assert lost > 30
    answers = cut.solve(short.tokens)[short.scored] == short.targets[short.scored]
    assert answers.float().mean() > 0.98
    longer = cut.sample(np.random.default_rng(2), 200, "length_2x")
    assert torch.equal(cut.solve(longer.tokens)[longer.scored], longer.targets[longer.scored])
    assert longer.tokens.shape[1] > 1024


@given(seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_what_the_answer_depends_on(seed: int) -> None:
    task = Counting(length=128, variables=3)
    program = words(task, task.sample(np.random.default_rng(seed), 1, TRAIN))[0]
    statements, printed, answer = oracle.parse(program)

    def solved(statements: list[oracle.Statement]) -> int:
        ids = [task.vocabulary.index(word) for word in oracle.words(statements, printed, 0)[:-1]]
        return int(task.solve(torch.tensor([ids]))[0, -1]) - 7

    rng = random.Random(seed)
    assert solved(statements) == answer
    place = rng.randrange(len(statements) + 1)
    assert solved([*statements[:place], ("pass", ""), *statements[place:]]) == answer
    assert solved([each for each in statements if each[0] != "pass"]) == answer
    last_set = max(i for i, each in enumerate(statements) if each == ("set", printed))
    assert solved(statements[last_set:]) == answer
    increments = [i for i, each in enumerate(statements) if i > last_set and each == ("increment", printed)]
    if increments:
        gone = rng.choice(increments)
        assert solved(statements[:gone] + statements[gone + 1 :]) == answer - 1
    swaps = [i for i in range(len(statements) - 1) if statements[i][1] != statements[i + 1][1]]
    if swaps:
        i = rng.choice(swaps)
        assert solved([*statements[:i], statements[i + 1], statements[i], *statements[i + 2 :]]) == answer


def test_errors_by_number_of_statements() -> None:
    task = Counting(length=128)
    batch = task.sample(np.random.default_rng(5), 300, "length_2x")
    guesses = batch.targets + (torch.rand(300, 1, generator=torch.Generator().manual_seed(0)) < 0.5)
    outcomes = task.outcomes(batch, guesses)
    expected: dict[str, list[bool]] = {}
    for row, program in enumerate(words(task, batch)):
        # an assignment is four words, an increment two, and `print v ->answer` is no statement
        statements = program.count("=") + program.count("++;") + program.count("pass;")
        low = 2 ** (statements.bit_length() - 1)
        wrong = bool((guesses[row] != batch.targets[row])[batch.scored[row]])
        expected.setdefault(f"error/statements_{low}_{2 * low - 1}", []).append(wrong)
    assert len(expected) == 2
    assert {name: wrong.tolist() for name, wrong in outcomes.items() if "/" in name and len(wrong)} == expected


def test_the_vocabulary_is_the_released_ones_size() -> None:
    for variables in (1, 3, 5):
        assert len(Counting(variables=variables).vocabulary) == 18 + variables


def test_defaults_are_never_cut_and_follow_the_length() -> None:
    for length in (100, 128, 512, 4000):
        task = Counting(length=length)
        assert task.max_statements == length // 2
        assert Counting(length=10**6, max_statements=length // 2).token_length(TRAIN) <= length


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"variables": 0}, "task.variables=0 is not between 1 and 8; .* task.variables=1"),
        ({"variables": 9}, "task.variables=8"),
        ({"min_statements": 0}, "task.min_statements=1"),
        ({"max_statements": 2}, "task.max_statements=2 is below task.min_statements; .* task.max_statements=3"),
        ({"length": 4}, "task.length=4 leaves no room for task.min_statements; .* task.length=6"),
        ({"length": 7, "max_statements": 9}, "task.length=7 cannot hold .* task.length=8"),
    ],
)
def test_mistakes(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Counting(**options)
    with pytest.raises(ConfigurationError, match=r"sets=length_5 is too short for a program"):
        Counting().token_length("length_5")
