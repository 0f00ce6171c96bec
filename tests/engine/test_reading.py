"""Feeding a network in calls changes gradients only where it says so, and never its outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lcbench
from lcbench.attention.base import Facts
from lcbench.composition import build, compose
from lcbench.engine.module import TrainingModule
from lcbench.engine.reading import Feeding, feeding_of
from lcbench.engine.settings import Trainer
from lcbench.errors import ConfigurationError
from lcbench.model.base import Model
from tests.conftest import TINY

TIME = 22
INFINI = ("attention=infini", "attention.segment=4")


def network() -> Model:
    return lcbench.build_model([*TINY, *INFINI, "model.n_layers=2", "model.dropout=0.1"]).double().train()


def embedded(model: Model, feeding: Feeding, tokens: Tensor, at: int) -> Tensor:
    """The gradient that the logits from ``at`` on send to the embedded input, ``[batch, time, d_model]``."""
    seen: list[Tensor] = []
    hook = model.embedding.register_forward_hook(lambda module, args, out: seen.append(out) or out.retain_grad())
    output = feeding(model.forward, tokens, Facts())
    output.logits[:, at:].square().sum().backward()
    hook.remove()
    return torch.cat([torch.zeros_like(part) if part.grad is None else part.grad for part in seen], 1)


@pytest.mark.parametrize("feeding", [Feeding(4, recompute=True), Feeding(4), Feeding(8), Feeding(7, recompute=True)])
def test_calls_without_cuts_give_the_whole_sequences_gradients(feeding: Feeding) -> None:
    model = network().eval()
    tokens = torch.randint(5, (3, TIME))
    found = []
    for way in (Feeding(), feeding):
        model.zero_grad()
        output = way(model.forward, tokens, Facts())
        output.logits.square().mean().backward()
        found.append([output.logits, output.hidden, *(p.grad for p in model.parameters() if p.grad is not None)])
    for ours, whole in zip(*found, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-9)


def test_recomputing_draws_the_same_dropout() -> None:
    model, tokens, found = network(), torch.randint(5, (3, TIME)), []
    for way in (Feeding(4), Feeding(4, recompute=True)):
        model.zero_grad()
        torch.manual_seed(3)
        way(model.forward, tokens, Facts()).logits.square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, kept in zip(*found, strict=True):
        torch.testing.assert_close(ours, kept, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("segments", "reached"), [(1, 4), (2, 8), (4, 8), (6, 24)])
def test_a_gradient_ends_where_the_state_is_cut(segments: int, reached: int) -> None:
    """The last of six segments sends its gradient to as many segments as lie in its call before it."""
    model = network().eval()
    gradients = embedded(model, Feeding(4 * segments, detach=True), torch.randint(5, (2, 24)), at=20)
    felt = gradients.flatten(2).any(-1)  # [batch, time]
    assert not bool(felt[:, : 24 - reached].any())
    assert bool(felt[:, 24 - reached :].all())


def test_outputs_do_not_depend_on_cuts() -> None:
    model, tokens = network().eval(), torch.randint(5, (3, TIME))
    whole = model(tokens).logits
    for feeding in (Feeding(4, detach=True), Feeding(5), Feeding(1, detach=True)):
        torch.testing.assert_close(feeding(model.forward, tokens, Facts()).logits, whole, rtol=1e-9, atol=1e-9)


def test_a_network_without_segments_is_not_cut() -> None:
    model = lcbench.build_model(list(TINY))
    with pytest.raises(ConfigurationError, match=r"trainer.bptt_segments=2: .* such as attention=infini\."):
        feeding_of(Trainer(bptt_segments=2), model)
    with pytest.raises(ConfigurationError, match="has no segments"):
        build(compose([*TINY, "trainer.recompute_segments=true"]))
    assert feeding_of(Trainer(), model) == Feeding()


def test_a_stream_carries_the_state_and_a_new_example_starts_afresh() -> None:
    words = [*TINY, *INFINI, "dataset=stream", "dataset.tokens=6"]
    experiment = build(compose(words))
    model = experiment.make_model()
    module = TrainingModule(experiment, model)
    module._stop_unless_finite = lambda loss: None  # needs a trainer
    pieces = [experiment.dataset.batch(index) for index in range(4)]
    assert [piece.continues for piece in pieces] == [False, True, True, False]
    logits, read = [], module.training_pass

    def watched(*arguments):
        logits.append((output := read(*arguments)).logits)
        return output

    module.training_pass = watched
    for index, piece in enumerate(pieces):
        module.training_step(piece, index)
    ours = torch.cat(logits[:3], 1)
    whole = model(torch.cat([piece.tokens for piece in pieces[:3]], 1)).logits
    torch.testing.assert_close(ours, whole)
    torch.testing.assert_close(logits[3], model(pieces[3].tokens).logits)
