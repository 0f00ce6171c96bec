"""The contrastive objective against its definition, its positives, and how collapse is measured."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lcbench
from lcbench.dataset.base import Batch
from lcbench.errors import ConfigurationError
from lcbench.model.base import ModelOutput, ModelState
from lcbench.objective.base import Step
from lcbench.objective.contrastive import Contrastive, contexts, info_nce
from lcbench.objective.geometry import geometry
from lcbench.objective.next_token import NextToken
from tests.conftest import TINY


def output(hidden: Tensor) -> ModelOutput:
    rows, time, _ = hidden.shape
    logits = torch.randn(rows, time, 5, dtype=hidden.dtype)
    return ModelOutput(lambda _: logits, 5, ModelState((), torch.zeros(rows, dtype=torch.int64)), hidden, hidden)


def batch(rows: int = 3, time: int = 5) -> Batch:
    tokens, targets = torch.randint(4, (rows, time)), torch.randint(4, (rows, time))
    supervised = torch.rand(rows, time) < 0.6
    padding = torch.arange(time) >= torch.tensor([[time], [time - 2], [time - 1]])
    return Batch(tokens, targets, supervised & ~padding, supervised & ~padding, padding)


def definition(
    states: list[Tensor], others: list[Tensor], positive: list[list[bool]], temperature: float, apart: bool
) -> Tensor:
    """The mean of -log of the share of positives, one cosine after another."""
    terms = []
    for i, z in enumerate(states):
        above, below = torch.zeros((), dtype=z.dtype), torch.zeros((), dtype=z.dtype)
        for j, other in enumerate(others):
            if apart and i == j:
                continue
            mass = torch.exp(z @ other / (z.norm() * other.norm() * temperature))
            below = below + mass
            if positive[i][j]:
                above = above + mass
        if above > 0:
            terms.append(-torch.log(above / below))
    return sum(terms, torch.zeros((), dtype=torch.float64)) / max(1, len(terms))


def reading_again(hidden: Tensor | None = None) -> Any:
    return lambda: pytest.fail("one reading is enough") if hidden is None else output(hidden)


def test_states_before_the_same_target_are_pulled_together() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    given, data = output(hidden), batch()
    ours = Contrastive(temperature=0.3, weight=2.0)(given, data, Step(0.0, reading_again()))
    states, targets = list(hidden[data.supervised]), data.targets[data.supervised].tolist()
    positive = [[a == b for b in targets] for a in targets]
    theirs = 2.0 * definition(states, states, positive, 0.3, apart=True)
    torch.testing.assert_close(ours["contrastive"], theirs, rtol=1e-10, atol=1e-12)
    assert torch.equal(ours["next_token"], NextToken()(given, data, Step(0.0, reading_again()))["next_token"])
    gradients = [torch.autograd.grad(loss, hidden, retain_graph=True)[0] for loss in (ours["contrastive"], theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_same_context_with_other_dropout_is_pulled_together(symmetric: bool) -> None:
    torch.manual_seed(1)
    first, second = torch.randn(2, 3, 5, 4, dtype=torch.float64).unbind(0)
    data = batch()
    data.tokens[1, :2] = data.tokens[0, :2]
    objective = Contrastive(positives="dropout", symmetric=symmetric, weight=1.0, temperature=0.5)
    ours = objective(output(first), data, Step(0.0, reading_again(second)))["contrastive"]
    assert data.padding is not None
    places = (~data.padding).nonzero().tolist()
    prefixes = [data.tokens[row, : time + 1].tolist() for row, time in places]
    positive = [[a == b for b in prefixes] for a in prefixes]
    assert sum(map(sum, positive)) > len(places)
    one, two = ([states[row, time] for row, time in places] for states in (first, second))
    theirs = definition(one, two, positive, 0.5, apart=False)
    if symmetric:
        theirs = (theirs + definition(two, one, positive, 0.5, apart=False)) / 2
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_contexts_are_told_apart() -> None:
    tokens = torch.tensor([[1, 2, 3, 0], [1, 2, 0, 3], [2, 1, 3, 0], [0, 0, 0, 0]])
    found = contexts(tokens)
    rows = [[tuple(row[: t + 1]) for t in range(4)] for row in tokens.tolist()]
    for a in range(4):
        for b in range(4):
            for t in range(4):
                for u in range(4):
                    assert (found[a, t] == found[b, u]).item() == (rows[a][t] == rows[b][u])
    many = contexts(torch.randint(2, (2000, 30)))
    assert len(many[:, -1].unique()) == 2000


def test_nothing_to_pull_together_is_no_loss() -> None:
    z = torch.eye(3, requires_grad=True)
    loss = info_nce(z, z, torch.tensor([0, 1, 2]), 0.1, apart=True)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, z)[0].any()
    assert math.isfinite(info_nce(z[:0], z[:0], torch.tensor([], dtype=torch.int64), 0.1).item())


def test_states_are_drawn_where_there_are_too_many() -> None:
    hidden = torch.randn(3, 5, 4, requires_grad=True)
    data = batch()
    loss = Contrastive(samples=4)(output(hidden), data, Step(0.0, reading_again()))["contrastive"]
    touched = torch.autograd.grad(loss, hidden)[0].abs().amax(-1) > 0
    assert int(touched.sum()) <= 4
    assert not touched[~data.supervised].any()


def test_a_collapse_and_a_sphere_are_told_apart() -> None:
    torch.manual_seed(0)
    point = torch.randn(1, 1, 8).expand(2, 100, 8) + 1e-4 * torch.randn(2, 100, 8)
    found = geometry(point, None, "x")
    assert found["x/mean_cosine"] > 0.99
    assert abs(found["x/uniformity"]) < 0.01
    line = torch.randn(2, 100, 1) * torch.randn(8)
    found = geometry(line, None, "x")
    assert found["x/participation_ratio"].item() == pytest.approx(1, abs=1e-3)
    assert found["x/top_share"].item() == pytest.approx(1, abs=1e-3)
    found = geometry(torch.randn(2, 250, 8), None, "x")
    assert abs(found["x/mean_cosine"]) < 0.05
    assert found["x/participation_ratio"] > 7
    assert found["x/top_share"] < 0.2
    assert found["x/uniformity"] < -3


def test_measures_by_their_definition_and_without_padding() -> None:
    torch.manual_seed(3)
    states = torch.randn(2, 4, 3, dtype=torch.float64)
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    found = geometry(states, padding, "x")
    kept = [states[row, t] for row in range(2) for t in range(4) if not padding[row, t]]
    unit = [x / x.norm() for x in kept]
    pairs = [(u, v) for i, u in enumerate(unit) for j, v in enumerate(unit) if i != j]
    mean = sum(float(u @ v) for u, v in pairs) / len(pairs)
    uniformity = math.log(sum(math.exp(-2 * float((u - v) @ (u - v))) for u, v in pairs) / len(pairs))
    spread = torch.linalg.eigvalsh(torch.cov(torch.stack(kept).T))
    assert found["x/mean_cosine"].item() == pytest.approx(mean)
    assert found["x/uniformity"].item() == pytest.approx(uniformity)
    assert found["x/top_share"].item() == pytest.approx(float(spread.max() / spread.sum()))
    assert found["x/participation_ratio"].item() == pytest.approx(float(spread.sum() ** 2 / (spread**2).sum()))
    assert geometry(states[:1, :1], None, "x") == {}


def test_a_head_is_trained_kept_and_left_out_of_the_loaded_network(run_here) -> None:  # type: ignore[no-untyped-def]
    found = []
    for steps in (1, 6):
        words = ("objective=contrastive", "objective.projection=4", f"trainer.max_steps={steps}")
        result, folder, _ = run_here(*words)
        assert result["status"] == "completed", result["error"]
        assert "measures/hidden/uniformity" in result
        weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        found.append({name: value for name, value in weights.items() if name.startswith("head.")})
        assert isinstance(lcbench.load(folder).model, nn.Module)
    early, late = found
    assert len(early) == 4
    assert all(not torch.equal(early[name], late[name]) for name in early)


def test_two_readings_train(run_here) -> None:  # type: ignore[no-untyped-def]
    result, _, _ = run_here("objective=contrastive", "objective.positives=dropout", "model.dropout=0.1")
    assert result["status"] == "completed", result["error"]


def test_dropout_without_dropout_is_refused() -> None:
    from lcbench.composition import build, compose

    with pytest.raises(ConfigurationError, match=r"objective.positives=dropout.*model.dropout=0.1"):
        build(compose([*TINY, "objective=contrastive", "objective.positives=dropout"]))


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"temperature": 0.0}, {"projection": 0}, {"samples": 1}])
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"objective.{name}="):
        Contrastive(**options)


def test_it_spreads_states_that_would_collapse() -> None:
    """From states in a narrow cone, the loss alone spreads them over the sphere."""
    torch.manual_seed(0)
    states = (torch.randn(1, 1, 8) * 3 + torch.randn(4, 16, 8)).requires_grad_()
    targets = torch.randint(5, (4, 16))
    everywhere = torch.ones_like(targets, dtype=torch.bool)
    data = Batch(targets, targets, everywhere, everywhere)
    before = geometry(states, None, "x")
    optimizer = torch.optim.Adam([states], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        Contrastive(weight=1.0)(output(states), data, Step(0.0, reading_again()))["contrastive"].backward()
        optimizer.step()
    after = geometry(states, None, "x")
    assert after["x/mean_cosine"] < before["x/mean_cosine"] - 0.3
    assert after["x/uniformity"] < before["x/uniformity"] - 1
