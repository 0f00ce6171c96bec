"""What an objective costs over next-token prediction: a step's forward and backward pass, one thread.

    python benchmarks/objectives.py [--rounds 7]

One network (2 layers, d 128, full attention, vocabulary 512) and one batch for all. Objectives take turns, so that the
machine's moods hit all; printed is the median of the rounds' ratios to next-token prediction, and the growth of the
resident set at its peak in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time

import torch

from lcbench.attention.full import Full
from lcbench.cost.memory import peak_memory_bytes, reset_peak_memory
from lcbench.dataset.base import Batch
from lcbench.model.decoder import Decoder
from lcbench.objective.base import Objective, Step
from lcbench.objective.contrastive import Contrastive
from lcbench.objective.next_token import NextToken
from lcbench.objective.trime import Trime
from lcbench.position.none import NoPosition

VOCABULARY = 512
OBJECTIVES: dict[str, Objective] = {
    "next_token": NextToken(),
    "trime, local": Trime(warmup=0.0),
    "trime, long": Trime(memory="long", warmup=0.0),
    "trime, external": Trime(memory="external", warmup=0.0),
    "contrastive, target": Contrastive(),
    "contrastive, dropout": Contrastive(positives="dropout"),
}
SIZES = ((64, 64), (32, 256), (16, 1024))


def setting(rows: int, tokens: int) -> tuple[Decoder, Batch]:
    torch.manual_seed(0)
    model = Decoder(VOCABULARY, Full, NoPosition, d_model=128, n_layers=2, dropout=0.1)
    drawn = torch.randint(VOCABULARY, (rows, tokens + 1))
    everywhere = torch.ones(rows, tokens, dtype=torch.bool)
    row = torch.arange(rows)
    facts = {"document": row // 8, "segment": row % 8}
    return model, Batch(drawn[:, :-1], drawn[:, 1:], everywhere, everywhere, None, facts)


def step(model: Decoder, batch: Batch, objective: Objective) -> float:
    """Seconds."""
    start = time.perf_counter()
    losses = objective(model(batch.tokens), batch, Step(0.5, lambda: model(batch.tokens)))
    torch.stack(list(losses.values())).sum().backward()
    return time.perf_counter() - start


def peak(name: str, rows: int, tokens: int) -> float:
    """MiB that the resident set grew by."""
    torch.set_num_threads(1)
    model, batch = setting(rows, tokens)
    device = torch.device("cpu")
    reset_peak_memory(device)
    before = peak_memory_bytes(device)
    step(model, batch, OBJECTIVES[name])
    return (peak_memory_bytes(device) - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for rows, tokens in SIZES:
        model, batch = setting(rows, tokens)
        seconds: dict[str, list[float]] = {name: [] for name in OBJECTIVES}
        for objective in OBJECTIVES.values():
            step(model, batch, objective)
        for _ in range(rounds):
            for name, objective in OBJECTIVES.items():
                seconds[name].append(step(model, batch, objective))
        plain = seconds["next_token"]
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for name, taken in seconds.items():
                ratio = statistics.median(a / b for a, b in zip(taken, plain, strict=True))
                memory = pool.apply(peak, (name, rows, tokens))
                milliseconds = 1000 * statistics.median(taken)
                line = f"{rows:3} x {tokens:5}  {name:22} {milliseconds:8.0f} ms  {ratio:5.2f} x  {memory:7.0f} MiB"
                print(line, flush=True)


if __name__ == "__main__":
    main()
