"""How long `lcbench compare` takes over many runs, from Enter to the last line of the table.

python benchmarks/compare.py [--runs 3000] [--seeds 5] [--rounds 5]

Makes folders like those that runs leave, with a record of a real run's size: 4 evaluation sets, each with 3 metrics
and 8 bins of distance. Every tenth run has failed. `--old` leaves the config out of the records; `--evaluated N` gives
every N-th run an evaluation of two more sets.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from lcbench.composition import compose
from lcbench.results.runs import dotted

SETS = ("in_distribution", "sparse", "dense", "sparse_length_4x")
METRICS = ("error", "sequence_error", "final_read_error", *(f"error/distance_{i}" for i in range(8)))
POSITIONS = ("rope", "cope", "alibi", "t5", "relative")


def make_runs(parent: Path, runs: int, seeds: int, old: bool, evaluated: int) -> None:
    """Folders of runs: positions, widths and learning rates, each with all seeds."""
    draw = random.Random(0)
    bases = {name: compose([f"position={name}", "logger=none"]).config for name in POSITIONS}
    for i in range(runs):
        number, seed = divmod(i, seeds)
        config = json.loads(json.dumps(bases[POSITIONS[number % len(POSITIONS)]]))
        config["seed"] = seed
        config["optimizer"]["lr"] = 1e-4 * (1 + number // len(POSITIONS))
        failed = i % 10 == 9
        record = {"status": "failed" if failed else "completed", "error": None, "seed": seed}
        record |= {"experiment": "flip_flop", "task/headline": "error"}
        record |= {} if old else {f"config/{key}": value for key, value in dotted(config).items()}
        for score in [] if failed else [f"scores/{name}/{metric}" for name in SETS for metric in METRICS]:
            value = draw.random()
            record |= {score: value, f"{score}_low": value - 0.01, f"{score}_high": value + 0.01, f"{score}_n": 4000}
        record |= {"cost/parameters": 102816, "cost/tokens_per_second": 13404.9, "cost/wall_seconds": 202.7}
        record |= {"train/steps": 600, "cost/peak_memory_bytes": 525615104, "cost/train_flops": 1863209779200}
        folder = parent / "flip_flop" / f"run-{i:08x}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        for name in ("run.log", "metrics.csv"):
            (folder / name).touch()
        (folder / "result.json").write_text(json.dumps(record, indent=1))
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        if evaluated and i % evaluated == 0:
            (folder / "evaluations").mkdir()
            (folder / "evaluations" / "later-00000000.json").write_text(json.dumps(_evaluation(draw), indent=1))


def _evaluation(draw: random.Random) -> dict[str, Any]:
    record: dict[str, Any] = {"status": "completed", "evaluated/step": 600}
    for score in [f"scores/{name}_length_4000/{metric}" for name in SETS[:2] for metric in METRICS]:
        value = draw.random()
        record |= {score: value, f"{score}_low": value - 0.01, f"{score}_high": value + 0.01, f"{score}_n": 4000}
    return record


def seconds(words: list[str]) -> float:
    """Wall time of a process."""
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--old", action="store_true")
    parser.add_argument("--evaluated", type=int, default=0)
    options = parser.parse_args()
    command = [sys.executable, "-m", "lcbench"]
    with tempfile.TemporaryDirectory() as folder:
        make_runs(Path(folder), options.runs, options.seeds, options.old, options.evaluated)
        compare = [*command, "compare", folder]
        commands = {
            "lcbench --help": [*command, "--help"],
            "compare": compare,
            "compare --metric sparse/error": [*compare, "--metric", "sparse/error"],
            "compare --against position=rope": [*compare, "--against", "position=rope"],
            "compare --by position": [*compare, "--by", "position"],
        }
        print(f"{options.runs} runs, {options.seeds} seeds each")
        for name, words in commands.items():
            print(f"{name:<32} {statistics.median(seconds(words) for _ in range(options.rounds)):.2f} s", flush=True)


if __name__ == "__main__":
    main()
