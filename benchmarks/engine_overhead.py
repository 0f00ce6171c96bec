"""What the engine costs over a bare PyTorch loop: the default run (2 layers, d 64), default settings, W&B offline.

    python benchmarks/engine_overhead.py [--steps 200] [--rounds 5]

The bare loop is what one writes by hand: draw a batch, forward, cross-entropy, backward, step. Both train the same
network on the same batches, in turns, in one process, so that the machine's moods hit both. The engine's time is that
of its training stretch as a user waits for it: curves, logger, progress, checkpoints; light evaluations, which a bare
loop does not have, are reported apart.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time

import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from lcbench.composition import build, compose
from lcbench.engine import run as engine
from lcbench.engine.callbacks import Curves
from lcbench.engine.experiment import Experiment


def bare_loop(experiment: Experiment, steps: int) -> float:
    """Seconds of ``steps`` updates written by hand."""
    torch.manual_seed(experiment.seed)
    model = experiment.make_model()
    recipe = experiment.optimizer
    optimizer = torch.optim.AdamW(recipe.groups(model), lr=recipe.lr, fused=True)
    began = time.perf_counter()
    for index in range(steps):
        batch = experiment.dataset.batch(index)
        logits = model(batch.tokens).logits[batch.supervised]
        loss = cross_entropy(logits, batch.targets[batch.supervised])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - began


def engine_loop(experiment: Experiment) -> tuple[float, float]:
    """Seconds of the engine's training stretch without light evaluations, and seconds of those."""
    spent = {"fit": 0.0, "light": 0.0}

    def timed(name, function):
        def call(*arguments, **options):
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += time.perf_counter() - began

        return call

    fit, light, scoring = engine.pl.Trainer.fit, Curves._evaluate, engine._Run._score
    engine.pl.Trainer.fit = timed("fit", fit)
    Curves._evaluate = timed("light", light)
    engine._Run._score = lambda self, model: {}
    try:
        engine.run(experiment, Console(file=io.StringIO()))
    finally:
        engine.pl.Trainer.fit, Curves._evaluate, engine._Run._score = fit, light, scoring
    return spent["fit"] - spent["light"], spent["light"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"trainer.max_steps={arguments.steps}", f"outputs={folder}", "rerun=true"]
        bare_loop(build(compose(overrides)), 20)
        ratios, lights = [], []
        for number in range(arguments.rounds):
            bare = bare_loop(build(compose(overrides)), arguments.steps)
            engine_seconds, light = engine_loop(build(compose(overrides)))
            ratios.append(engine_seconds / bare)
            lights.append(light / bare)
            row = f"bare {bare:.2f} s, engine {engine_seconds:.2f} s, ratio {ratios[-1]:.3f}"
            print(f"round {number + 1}: {row}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f} (light evaluations add {statistics.median(lights):.3f})")


if __name__ == "__main__":
    main()
