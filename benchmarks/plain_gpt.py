"""A run of lcbench beside a GPT as one writes it in an afternoon: bits per byte, and the time that it took.

    python benchmarks/plain_gpt.py [--steps 1200] [--seeds 0,1] [overrides of experiment=alibi/python_stdlib]

The plain one is GPT-2's block (Radford et al. 2019) in PyTorch's own modules: learned positions, pre-norm, GELU,
torch's fused causal attention, GPT-2's initialisation; windows of text drawn at random from all training documents
behind one another. Both have the same width, depth and heads, see as many tokens of the same documents in batches of
the same size, under the same AdamW, schedule and clipping, and are scored on the same windows of the same documents.
Each run has a process of its own; times are of training alone, by the wall and by the processor.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention and a feed-forward network, each with its norm in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, time, width]`` to the same shape."""
        batch, length, width = x.shape
        parts = self.read(self.first(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(*parts, is_causal=True)  # [batch, heads, time, head_dim]
        x = x + self.merge(a.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.second(x))))


class PlainGPT(nn.Module):
    """GPT-2 at any size."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_stream = name.endswith(("merge.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if into_stream else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[batch, time, vocabulary]`` of tokens ``[batch, time]``."""
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))


def plain(words: list[str], seed: int) -> dict[str, Any]:
    """Train and score the plain one."""
    from lcbench.composition import build, compose
    from lcbench.dataset.base import TRAIN

    experiment = build(compose([*words, f"seed={seed}"]))
    task, config = experiment.task, experiment.config
    rows, length, steps = config["trainer"]["batch_size"], task.length, config["trainer"]["max_steps"]
    text = np.concatenate([task.documents.of(int(number)) for number in task.numbers(TRAIN)])
    torch.set_num_threads(config["trainer"]["threads"] or torch.get_num_threads())
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    shape = config["model"]
    model = PlainGPT(len(task.vocabulary), length, shape["d_model"], shape["n_layers"], shape["n_heads"])
    # the recipe of the run, over parameters of other names
    options = config["optimizer"]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options["lr"], betas=tuple(options["betas"]), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, experiment.optimizer.factor(steps))
    began, spent = time.perf_counter(), time.process_time()
    for _ in range(steps):
        starts = rng.integers(len(text) - length - 1, size=rows)
        found = torch.from_numpy(np.stack([text[start : start + length + 1] for start in starts]).astype(np.int64))
        loss = F.cross_entropy(model(found[:, :-1]).flatten(0, 1), found[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), options["clip_norm"])
        optimizer.step()
        schedule.step()
    took = {"wall seconds": time.perf_counter() - began, "processor seconds": time.process_time() - spent}
    model.eval()
    listed, tally = task.rows("non_overlapping", experiment.evaluation.examples, 0), task.tally("non_overlapping")
    with torch.inference_mode():
        for start, stop in listed.batches(experiment.evaluation.batch_size):
            batch = listed.take(start, stop)
            tally.add(batch, task.judge(model(batch.tokens), batch.targets))
    return {**took, **_scores(tally.record()), "parameters": sum(p.numel() for p in model.parameters())}


def ours(words: list[str], seed: int) -> dict[str, Any]:
    """The run, and what its training took."""
    from rich.console import Console

    from lcbench.composition import build, compose
    from lcbench.engine import run as engine
    from lcbench.engine.module import TrainingModule

    marks: list[tuple[float, float]] = []
    step = TrainingModule.training_step

    def marked(self: TrainingModule, *arguments: Any) -> Any:
        marks.append((time.perf_counter(), time.process_time()))
        return step(self, *arguments)

    TrainingModule.training_step = marked  # type: ignore[method-assign]
    experiment = build(compose([*words, f"seed={seed}"]))
    result = engine.run(experiment, Console(file=io.StringIO()))
    steps = len(marks)
    # from the first step's start to the last one's, and a step more
    wall, processor = ((last - first) * steps / (steps - 1) for first, last in zip(marks[0], marks[-1], strict=True))
    scores = {key.rpartition("/")[2]: value for key, value in result.items() if "/non_overlapping/" in key}
    return {
        "wall seconds": wall,
        "processor seconds": processor,
        **_scores(scores),
        "parameters": result["cost/parameters"],
    }


def _scores(record: dict[str, Any]) -> dict[str, float]:
    return {name: record[name] for name in ("bits_per_byte", "bits_per_byte_low", "bits_per_byte_high")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", default="0")
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "experiment=alibi/python_stdlib",
            f"trainer.max_steps={options.steps}",
            "trainer.evaluate_every=0",
            "trainer.device=cpu",
            "trainer.progress=false",
            "evaluation.sets=[non_overlapping]",
            "evaluation.lengths=[]",
            "logger=none",
            f"outputs={Path(folder)}",
            *overrides,
        ]
        for seed in map(int, options.seeds.split(",")):
            for name, work in (("lcbench", ours), ("plain GPT", plain)):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    print(json.dumps({"seed": seed, "who": name, **pool.apply(work, (words, seed))}), flush=True)


if __name__ == "__main__":
    main()
