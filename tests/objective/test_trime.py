"""TRIME against its definition: loss, gradients, predictions, what may be seen, and what is carried."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import lcbench
from lcbench.attention.base import Facts
from lcbench.dataset.base import Batch
from lcbench.engine.evaluation import read
from lcbench.errors import ConfigurationError
from lcbench.model.base import ModelOutput, ModelState
from lcbench.objective import trime
from lcbench.objective.base import Step
from lcbench.objective.next_token import NextToken
from lcbench.objective.trime import MemorySums, Trime
from tests.conftest import TINY
from tests.oracles import trime as oracle

VOCABULARY, WIDTH, TIME = 5, 4, 6
LATE = Step(0.5, lambda: pytest.fail("one reading is enough"))


def output(rows: int, time: int = TIME) -> ModelOutput:
    """Logits and keys that know nothing of the tokens, leaves of the graph."""
    logits = torch.randn(rows, time, VOCABULARY, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(rows, time, WIDTH, dtype=torch.float64).mul(1.5).requires_grad_()
    state = ModelState((), torch.zeros(rows, dtype=torch.int64))
    return ModelOutput(torch.nn.Identity(), VOCABULARY, state, logits, keys)


def likeliest(scores: Tensor, targets: Tensor) -> Tensor:
    return scores.argmax(-1)


def batch(rows: int, lengths: list[int] | None = None, **facts: list[int]) -> Batch:
    tokens = torch.randint(VOCABULARY, (rows, TIME))
    targets = torch.randint(VOCABULARY, (rows, TIME))
    targets[:, :-1] = tokens[:, 1:]
    supervised = torch.rand(rows, TIME) < 0.7
    padding = None
    if lengths is not None:
        padding = torch.arange(TIME) >= torch.tensor(lengths)[:, None]
        supervised &= ~padding
    known = {name: torch.tensor(values) for name, values in facts.items()}
    return Batch(tokens, targets, supervised, supervised, padding, known)


def expected(given: ModelOutput, data: Batch, kind: str, local: bool = True) -> Tensor:
    rows = range(len(data))
    lengths = [TIME if data.padding is None else int((~data.padding[row]).sum()) for row in rows]
    return oracle.loss(
        given.logits,
        given.keys,
        [data.tokens[row, : lengths[row]].tolist() for row in rows],
        [
            [int(data.targets[row, t]) if data.supervised[row, t] else None for t in range(lengths[row])]
            for row in rows
        ],
        data.facts.get("document", torch.arange(len(data))).tolist(),
        data.facts.get("segment", torch.arange(len(data))).tolist(),
        kind,
        local,
    )


def loss_of(objective: Trime, given: ModelOutput, data: Batch) -> Tensor:
    return objective(given, data, LATE)["trime"]


CASES: list[tuple[dict[str, Any], dict[str, list[int]]]] = [
    ({"memory": "local"}, {}),
    ({"memory": "long"}, {"document": [7, 3, 7, 7, 3], "segment": [1, 0, 0, 2, 2]}),
    ({"memory": "long"}, {"document": [2, 2, 2, 2, 2], "segment": [1, 0, 1, 2, 0]}),
    ({"memory": "external", "drop_local": 0.0}, {"document": [0, 1, 2, 1, 4]}),
    ({"memory": "external", "drop_local": 1.0}, {"document": [0, 1, 2, 1, 4]}),
]


@pytest.mark.parametrize("lengths", [None, [6, 3, 0, 1, 5]])
@pytest.mark.parametrize(("options", "facts"), CASES)
@pytest.mark.parametrize("block", [1, 37, trime.BLOCK])
def test_loss_and_gradients_are_those_of_the_definition(
    options: dict[str, Any],
    facts: dict[str, list[int]],
    block: int,
    lengths: list[int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trime, "BLOCK", block)
    torch.manual_seed(1)
    given, data = output(5), batch(5, lengths, **facts)
    theirs = expected(given, data, options["memory"], options.get("drop_local") != 1.0)
    ours = loss_of(Trime(**options), given, data)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    leaves = [given.logits, given.keys]
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_of_the_sums_are_right_where_some_see_nothing() -> None:
    torch.manual_seed(2)
    q, k = (torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    wanted, labels, seen = torch.randint(2, (2, 4)), torch.randint(2, (2, 5)), torch.rand(2, 4, 5) < 0.6
    seen[0, 1] = False

    def finite(*inputs: Tensor) -> tuple[Tensor, ...]:
        every, alike = MemorySums.apply(
            *inputs, wanted, labels, lambda start, stop, held: seen[:, start:stop, :held], False
        )
        return every.exp(), alike.exp()

    assert torch.autograd.gradcheck(finite, (q, k))


def test_nothing_of_the_size_of_all_pairs_is_kept() -> None:
    given, data = output(4), batch(4, document=[0, 1, 2, 3])
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss_of(Trime(memory="external", drop_local=0.0), given, data)
    assert max(kept) <= max(given.logits.numel(), given.keys.numel()) < (4 * TIME) ** 2


def test_without_memory_it_is_cross_entropy() -> None:
    """Every row is a piece of one document, so no row is another's external memory, and the local one is dropped."""
    given, data = output(4), batch(4, document=[3, 3, 3, 3])
    ours = loss_of(Trime(memory="external", drop_local=1.0), given, data)
    plain = cross_entropy(given.logits[data.supervised], data.targets[data.supervised])
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    gradient = torch.autograd.grad(ours, given.keys, retain_graph=True)[0]
    assert not gradient.any()
    alone = dataclasses.replace(data, facts={"document": torch.arange(4)})
    assert not torch.isclose(loss_of(Trime(memory="external", drop_local=1.0), given, alone), plain)


def test_pieces_of_one_document_do_not_show_each_other_what_comes() -> None:
    """A row that ends where the other begins: with external memory it would hold the answer."""
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0], [3, 4, 0, 2, 2, 1]])
    targets = torch.tensor([[1, 2, 3, 4, 0, 2], [4, 0, 2, 2, 1, 1]])
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    given = output(2)
    own = Batch(tokens, targets, everywhere, everywhere, None, {"document": torch.tensor([5, 5])})
    changed = dataclasses.replace(own, tokens=tokens.clone(), targets=targets.clone())
    changed.tokens[1] = 1
    objective = Trime(memory="external", drop_local=0.0)
    first = dataclasses.replace(own, supervised=everywhere & torch.tensor([[True], [False]]))
    first_changed = dataclasses.replace(changed, supervised=first.supervised)
    assert torch.equal(loss_of(objective, given, first), loss_of(objective, given, first_changed))


@pytest.mark.parametrize("at", range(TIME))
def test_a_position_does_not_see_what_follows_it(at: int) -> None:
    """Neither its own follower nor later ones, in the loss as in the prediction."""
    torch.manual_seed(at)
    given, data = output(1), batch(1)
    here = torch.arange(TIME)[None] == at
    data = dataclasses.replace(data, supervised=here)
    other = dataclasses.replace(data, tokens=data.tokens.clone())
    other.tokens[:, at + 1 :] = (other.tokens[:, at + 1 :] + 1) % VOCABULARY
    assert torch.equal(loss_of(Trime(), given, data), loss_of(Trime(), given, other))
    scores = [Trime().predict(given, d.tokens, Facts())[0][:, : at + 1] for d in (data, other)]
    assert torch.equal(*scores)


def test_the_first_position_sees_nothing() -> None:
    given, data = output(3), batch(3)
    data = dataclasses.replace(data, supervised=torch.arange(TIME).expand(3, TIME) == 0)
    ours = loss_of(Trime(), given, data)
    torch.testing.assert_close(ours, cross_entropy(given.logits[:, 0], data.targets[:, 0]), rtol=1e-12, atol=1e-12)
    assert all(g.isfinite().all() for g in torch.autograd.grad(ours, [given.logits, given.keys]))
    scores = Trime().predict(given, data.tokens, Facts())[0]
    torch.testing.assert_close(scores[:, 0], given.logits[:, 0].log_softmax(-1))


def test_gradient_reaches_the_remembered_keys_unless_they_are_detached() -> None:
    given, data = output(2), batch(2)
    data = dataclasses.replace(data, supervised=torch.arange(TIME).expand(2, TIME) == TIME - 1)
    losses, gradients = [], []
    for detach in (False, True):
        losses.append(loss_of(Trime(detach_memory=detach), given, data))
        gradients.append(torch.autograd.grad(losses[-1], given.keys)[0])
    assert torch.equal(*losses)
    with_memory, without = gradients
    assert with_memory[:, :-1].abs().amax(-1).min() > 0
    assert not without[:, :-1].any()
    torch.testing.assert_close(without[:, -1], with_memory[:, -1])


def test_order_of_rows_does_not_matter() -> None:
    given, data = output(5), batch(5, document=[7, 3, 7, 7, 3], segment=[1, 0, 0, 2, 2])
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = dataclasses.replace(given, hidden=given.logits[order], keys=given.keys[order])
    for options, _ in CASES:
        a, b = loss_of(Trime(**options), given, data), loss_of(Trime(**options), moved, data.select(order))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("capacity", [None, 1, 3])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_predictions_are_those_of_the_definition(capacity: int | None, temperature: float) -> None:
    given, tokens = output(2), torch.randint(VOCABULARY, (2, TIME))
    objective = Trime(temperature=temperature, capacity=capacity)
    scores, _ = objective.predict(given, tokens, Facts())
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, TIME, dtype=torch.float64))
    for row in range(2):
        for t in range(TIME):
            first = 0 if capacity is None else max(0, t - capacity)
            memory = [(given.keys[row, j], int(tokens[row, j + 1])) for j in range(first, t)]
            theirs = oracle.probabilities(given.logits[row, t], given.keys[row, t], memory, temperature)
            torch.testing.assert_close(scores[row, t].exp(), torch.stack(theirs), rtol=1e-10, atol=1e-12)


def test_a_pair_of_a_word_makes_it_likelier_in_every_context() -> None:
    """The last token names the word of the pair before it: only that word gains on what the others have."""
    given = output(2)
    for word in range(VOCABULARY):
        tokens = torch.randint(VOCABULARY, (2, TIME))
        tokens[:, -1] = word
        scores = Trime().predict(given, tokens, Facts())[0][:, -1].exp()
        hidden = Facts(documents=torch.tensor([[0] * (TIME - 1) + [1]] * 2))
        without = Trime().predict(given, tokens, hidden)[0][:, -1].exp()
        torch.testing.assert_close(without, given.logits[:, -1].softmax(-1))
        one = Trime(capacity=1).predict(given, tokens, Facts())[0][:, -1].exp()
        assert (one[:, word] > without[:, word]).all()
        others = torch.arange(VOCABULARY) != word
        assert (one[:, others] < without[:, others]).all()
        assert scores.sum().item() == pytest.approx(2)


@pytest.mark.parametrize("cuts", [[1] * TIME, [2, 4], [5, 1], [3, 0, 3]])
@pytest.mark.parametrize("capacity", [None, 2])
@pytest.mark.parametrize("kind", ["plain", "documents", "padding"])
def test_what_is_carried_makes_cuts_invisible(cuts: list[int], capacity: int | None, kind: str) -> None:
    given, tokens = output(3), torch.randint(VOCABULARY, (3, TIME))
    facts = {
        "plain": Facts(),
        "documents": Facts(documents=torch.tensor([[0, 0, 1, 1, 1, 4], [0] * 6, [2, 2, 2, 2, 3, 3]])),
        "padding": Facts(
            padding=torch.tensor([[1, 0, 0, 1, 0, 0], [0] * 6, [0, 0, 0, 0, 1, 1]]).bool(), consecutive=False
        ),
    }[kind]
    objective = Trime(capacity=capacity)
    whole, reached = objective.predict(given, tokens, facts)
    memory, parts, start = None, [], 0
    for size in cuts:
        part = slice(start, start + size)
        start += size
        if not size:
            continue
        piece = dataclasses.replace(given, hidden=given.logits[:, part], keys=given.keys[:, part])
        known = facts.map(lambda tensor, part=part: tensor[:, part])
        scores, memory = objective.predict(piece, tokens[:, part], known, memory)
        parts.append(scores)
    shown = torch.ones(3, TIME, dtype=torch.bool) if facts.padding is None else ~facts.padding
    torch.testing.assert_close(torch.cat(parts, 1)[shown], whole[shown], rtol=1e-10, atol=1e-12)
    assert memory is not None
    assert memory.nbytes == reached.nbytes
    if capacity is not None:
        assert memory.pairs.length <= capacity


def test_a_reset_row_is_a_fresh_start() -> None:
    given, tokens = output(2), torch.randint(VOCABULARY, (2, TIME))
    fresh, _ = Trime().predict(given, tokens, Facts())
    _, memory = Trime().predict(given, tokens, Facts())
    again, _ = Trime().predict(given, tokens, Facts(), memory.reset(torch.tensor([True, False])))
    torch.testing.assert_close(again[0], fresh[0])
    assert not torch.allclose(again[1], fresh[1])


def test_segments_one_after_another_are_segments_in_one_batch() -> None:
    """What is carried at test is what a batch of segments is trained with."""
    given, data = output(3), batch(3, document=[4, 4, 4], segment=[0, 1, 2])
    everywhere = torch.ones_like(data.supervised)
    tokens, targets = data.tokens, data.targets.clone()
    targets[:-1, -1] = tokens[1:, 0]
    data = dataclasses.replace(data, targets=targets, supervised=everywhere)
    memory, terms = None, []
    for row in range(3):
        piece = dataclasses.replace(given, hidden=given.logits[row : row + 1], keys=given.keys[row : row + 1])
        scores, memory = Trime().predict(piece, tokens[row : row + 1], Facts(), memory)
        terms.append(-scores[0].gather(1, targets[row, :, None]))
    torch.testing.assert_close(loss_of(Trime(memory="long"), given, data), torch.cat(terms).mean())


def test_warm_up_is_the_plain_loss_and_a_warm_up_to_the_end_a_continuous_cache() -> None:
    given, data = output(2), batch(2)
    plain = NextToken()(given, data, LATE)["next_token"]
    for warmup, progress in ((0.05, 0.049), (1.0, 0.999)):
        step = dataclasses.replace(LATE, progress=progress)
        losses = Trime(warmup=warmup)(given, data, step)
        assert list(losses) == ["next_token"]
        assert torch.equal(losses["next_token"], plain)
    assert list(Trime()(given, data, dataclasses.replace(LATE, progress=0.05))) == ["trime"]
    ours, cache = (Trime(warmup=w).predict(given, data.tokens, Facts())[0] for w in (0.05, 1.0))
    assert torch.equal(ours, cache)


def test_keys_are_what_the_last_feed_forward_network_reads() -> None:
    for position in ("pre", "post"):
        model = lcbench.build_model([*TINY, "model.n_layers=2", f"model.norm_position={position}"]).eval()
        read: list[Tensor] = []
        model.layers[-1].feed_forward.register_forward_hook(lambda m, x, y, read=read: read.append(x[0]))
        assert torch.equal(model(torch.randint(5, (2, 8))).keys, read[0])


@pytest.mark.parametrize("model", ["lstm", "recurrent_memory"])
def test_every_network_has_keys(model: str) -> None:
    words = [*TINY, f"model={model}", "position=rope"]
    words = [word for word in words if not (model == "lstm" and word.startswith(("model.n_heads", "position")))]
    found = lcbench.build_model(words).eval()(torch.randint(5, (2, 8)))
    assert found.keys.shape == found.hidden.shape
    assert torch.equal(found.keys, found.hidden) == (model == "lstm")


def test_a_table_of_positions_need_only_hold_a_segment(run_here) -> None:  # type: ignore[no-untyped-def]
    words = ("dataset=segments", "dataset.tokens=5", "trainer.batch_size=6", "evaluation.segment=5")
    table = ("position=absolute_learned", "position.max_length=5")
    result, _, _ = run_here("objective=trime", "objective.memory=long", *words, *table)
    assert result["status"] == "completed", result["error"]
    with pytest.raises(ConfigurationError, match="evaluation set"):
        run_here("objective=trime", *words[:-1], *table)


def test_a_network_is_scored_by_its_objective() -> None:
    """Whole, and in segments that the network reads alone; the plain objective takes the logits."""
    model = lcbench.build_model([*TINY, "task.length=16"]).eval()
    tokens = torch.randint(5, (3, 16))
    data = Batch(tokens, tokens, tokens > 9, tokens > 9)
    objective = Trime()
    with torch.no_grad():
        found = model(tokens)
        assert torch.equal(read(model, NextToken(), data, likeliest), found.logits.argmax(-1))
        assert torch.equal(
            read(model, objective, data, likeliest), objective.predict(found, tokens, Facts())[0].argmax(-1)
        )
        memory, parts = None, []
        for start in (0, 6, 12):
            piece = tokens[:, start : start + 6]
            scores, memory = objective.predict(model(piece), piece, Facts(), memory)
            parts.append(scores.argmax(-1))
        assert torch.equal(read(model, objective, data, likeliest, 6), torch.cat(parts, 1))


@pytest.mark.parametrize(
    ("memory", "dataset", "hint"), [("long", "packed", "segments"), ("external", "synthetic", "packed")]
)
def test_a_memory_that_the_dataset_does_not_deliver_is_refused(memory: str, dataset: str, hint: str) -> None:
    from lcbench.composition import build, compose

    with pytest.raises(ConfigurationError, match=rf"objective.memory={memory}.*dataset={hint}"):
        build(compose([*TINY, "objective=trime", f"objective.memory={memory}", f"dataset={dataset}"]))


@pytest.mark.parametrize("options", [{"drop_local": 1.5}, {"warmup": -0.1}, {"temperature": 0.0}, {"capacity": 0}])
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"objective.{name}="):
        Trime(**options)


@pytest.mark.parametrize(
    "words",
    [
        ("objective.memory=local",),
        (
            "objective.memory=long",
            "dataset=segments",
            "dataset.tokens=5",
            "trainer.batch_size=6",
            "evaluation.segment=5",
        ),
        ("objective.memory=external", "dataset=packed", "dataset.size=32"),
    ],
)
def test_a_run_trains_and_is_scored(words: tuple[str, ...], run_here) -> None:  # type: ignore[no-untyped-def]
    result, _, _ = run_here("objective=trime", *words)
    assert result["status"] == "completed", result["error"]
    assert math.isfinite(result["measures/keys/mean_cosine"])
    assert 1 <= result["measures/keys/participation_ratio"] <= 16
