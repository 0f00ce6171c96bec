"""Operations and the most bytes held, counted from shapes: against formulas, real steps and each other."""

from __future__ import annotations

import pytest
import torch

from lcbench.composition import compose
from lcbench.construction import construct_model
from lcbench.cost.analytic import count, estimate
from lcbench.cost.apart import apart
from lcbench.cost.counts import Counts
from lcbench.cost.measure import WARM_UP, peak
from lcbench.cost.step import PASSES, Step, Work, counted
from lcbench.errors import ConfigurationError


def work(*words: str, scope: str = "layer", vocabulary: int = 20) -> Work:
    config = compose([f"model.d_model={32}", *words]).config
    parts = {name: config.get(name) for name in ("attention", "position", "model")}
    return Work(scope, **parts, vocabulary=vocabulary, precision="32", device="cpu", threads=1, seed=0)  # type: ignore[arg-type]


def test_the_most_bytes_held_at_once_are_those_of_a_hand_count() -> None:
    def make():
        x = torch.zeros(100, dtype=torch.float32)

        def run() -> None:
            a = x + 1  # 400
            b = torch.cat([a, a])  # 1200
            b.view(2, 100).add_(1)  # no storage of its own, and none for x
            x.mul_(2)
            del a  # 800
            c = b * 2  # 1600
            del b, c
            torch.ones(50)

        return run, [x]

    assert count(make).peak_bytes == 1600


def test_operations_are_those_that_torch_counts() -> None:
    one = work("position=cope", "attention=sliding_window", scope="model")
    config = {"model": one.model, "attention": one.attention, "position": one.position}
    both = estimate(lambda: construct_model(config, 20), (1, 300))
    assert count(counted(one, 300, "forward")).operations == both.forward_operations
    assert count(counted(one, 300, "training")).operations == both.training_operations


def test_a_layer_is_its_projections_and_its_pairs() -> None:
    full = work("attention=full", "position=rope")
    n, d = 500, 32
    projections, pairs = 4 * 2 * n * d * d, 2 * 2 * d * n * (n + 1) // 2
    assert count(counted(full, n, "forward")).operations == projections + pairs
    assert count(counted(full, n, "training")).operations == 3 * projections + pairs * 7 // 2


@pytest.mark.parametrize(
    "words",
    [
        ("attention=infini", "attention.segment=256"),
        ("attention=sliding_window",),
        ("attention=transformer_xl", "attention.segment=256"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("name", PASSES)
def test_counts_continue_as_they_would_be_counted(words: tuple[str, ...], name: str, monkeypatch) -> None:
    one = work(*words, "position=none")
    far = 4096
    monkeypatch.setattr("lcbench.cost.counts.PATIENCE", 0.0)
    monkeypatch.setattr("lcbench.cost.counts.STEP", 512)
    continued = Counts(one, name).at(far)  # type: ignore[arg-type]
    real = count(counted(one, far, name))  # type: ignore[arg-type]
    assert continued is not None
    assert continued.operations == pytest.approx(real.operations, rel=1e-3)
    assert continued.peak_bytes == pytest.approx(real.peak_bytes, rel=0.1)


def test_nothing_is_said_of_lengths_before_a_memory_is_full(monkeypatch) -> None:
    monkeypatch.setattr("lcbench.cost.counts.PATIENCE", 0.0)
    monkeypatch.setattr("lcbench.cost.counts.FURTHER", 1.0)
    counts = Counts(work("attention=memorizing", "position=none", "attention.memory=1M"), "forward")
    assert counts.at(10**9) is None
    assert "the 1,000,000 tokens that it may hold" in counts.reason


def test_landmarks_are_there_for_who_reads_them() -> None:
    with_landmarks = Step(work("attention=landmark", "position=rope"), 103)
    assert with_landmarks._facts.landmarks is not None
    assert with_landmarks._facts.landmarks.nonzero()[:, 1].tolist() == [50, 101]
    assert Step(work("attention=full", "position=rope"), 103)._facts.landmarks is None


def test_a_table_of_positions_ends() -> None:
    one = work("attention=full", "position=absolute_learned", "position.max_length=64", scope="model")
    with pytest.raises(ConfigurationError, match=r"position\.max_length=65"):
        Step(one, 65)


def test_measured_peaks_are_near_what_shapes_say() -> None:
    one = work("attention=full", "position=rope", "model.d_model=256", "model.n_heads=4")
    length = 8 * WARM_UP
    measured = apart(peak, one, length, "training")
    if measured.bytes is None:
        pytest.skip("this system does not let a process forget its peak")
    counted_bytes = count(counted(one, length, "training")).peak_bytes
    assert 0.8 < measured.bytes / counted_bytes < 2.5
