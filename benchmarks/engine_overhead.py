"""What the engine costs over a bare PyTorch loop: the default run (2 layers, d 64), default settings, W&B offline.

    python benchmarks/engine_overhead.py [--steps 60] [--rounds 15]

The bare loop is what one writes by hand: draw a batch, forward, cross-entropy, backward, step. Both train the same
network on the same batches, in turns, in one process, so that the machine's moods hit both; the median of the rounds'
ratios counts. Timed is from the start of the second step to the start of the last, curves, logger and progress
included; what happens once a run (starting Lightning and W&B) is `benchmarks/startup.py`'s business, and light
evaluations and checkpoints, which a bare loop does not have, are timed apart.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from lcbench.composition import build, compose
from lcbench.engine import run as engine
from lcbench.engine.callbacks import Checkpoints, Curves
from lcbench.engine.experiment import Experiment
from lcbench.engine.module import TrainingModule


def bare_loop(experiment: Experiment, steps: int) -> float:
    """Seconds from the second step to the last, written by hand."""
    torch.manual_seed(experiment.seed)
    model = experiment.make_model()
    recipe = experiment.optimizer
    optimizer = torch.optim.AdamW(recipe.groups(model), lr=recipe.lr, fused=True)
    starts = []
    for index in range(steps):
        starts.append(time.perf_counter())
        batch = experiment.dataset.batch(index)
        logits = model(batch.tokens).logits[batch.supervised]
        loss = cross_entropy(logits, batch.targets[batch.supervised])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return starts[-1] - starts[1]


def engine_loop(experiment: Experiment) -> tuple[float, float, float]:
    """Seconds from the engine's second step to its last, of a light evaluation, and of writing a checkpoint."""
    starts: list[float] = []
    spent: dict[str, list[float]] = {"evaluation": [], "checkpoint": []}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **options)
            spent[name].append(time.perf_counter() - began)
            return result

        return call

    def stepping(self: TrainingModule, *arguments: Any) -> Any:
        starts.append(time.perf_counter())
        return step(self, *arguments)

    step, light, save, scoring = TrainingModule.training_step, Curves._evaluate, Checkpoints.save, engine._Run._score
    TrainingModule.training_step = stepping
    Curves._evaluate, Checkpoints.save = timed("evaluation", light), timed("checkpoint", save)
    engine._Run._score = lambda self, model: {}
    try:
        engine.run(experiment, Console(file=io.StringIO()))
    finally:
        TrainingModule.training_step, Curves._evaluate, Checkpoints.save = step, light, save
        engine._Run._score = scoring
    return starts[-1] - starts[1], statistics.median(spent["evaluation"]), statistics.median(spent["checkpoint"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    ratios, bares, evaluations, checkpoints = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"trainer.max_steps={arguments.steps}", f"outputs={folder}", "rerun=true"]
        bare_loop(build(compose(overrides)), 20)
        for number in range(arguments.rounds):
            bare = bare_loop(build(compose(overrides)), arguments.steps)
            seconds, evaluation, checkpoint = engine_loop(build(compose(overrides)))
            ratios.append(seconds / bare)
            bares.append(bare / (arguments.steps - 2))
            evaluations.append(evaluation)
            checkpoints.append(checkpoint)
            print(f"round {number + 1}: bare {bare:.2f} s, engine {seconds:.2f} s, ratio {ratios[-1]:.3f}", flush=True)
    step = statistics.median(bares)
    print(f"a bare step takes {1000 * step:.1f} ms, the engine's {statistics.median(ratios):.3f} of it (median ratio)")
    print(
        f"a light evaluation (every 100 steps by default) takes {1000 * statistics.median(evaluations):.0f} ms, "
        f"{statistics.median(evaluations) / (100 * step):.1%} of its 100 steps; a checkpoint (every 500) "
        f"{1000 * statistics.median(checkpoints):.0f} ms"
    )


if __name__ == "__main__":
    main()
