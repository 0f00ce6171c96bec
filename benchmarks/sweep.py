"""What a sweep gains and costs on this machine: `python benchmarks/sweep.py`.

In each round, one after the other: (a) two jobs as a sweep; (b) the same two commands one after the other, with the
threads that a single command takes; (c) the same with the threads that the sweep gives to each. Then (d): jobs of one
step, as a sweep that runs one at a time against single commands, and what of a command is imports. Medians of ratios,
which compare what was measured next to each other; other work on the machine still disturbs them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {
    "default": ["trainer.max_steps=300"],
    "small": [
        "model.d_model=32",
        "model.n_layers=1",
        "position=rope",
        "task.length=64",
        "trainer.batch_size=16",
        "trainer.max_steps=3000",
    ],
}
TRIVIAL = [
    "model.d_model=16",
    "model.n_heads=2",
    "model.n_layers=1",
    "position=none",
    "task.length=16",
    "trainer.max_steps=1",
    "trainer.batch_size=8",
    "evaluation.examples=32",
    "evaluation.light_examples=32",
]


def run(*words: str, threads: int | None = None, cores: set[int] | None = None) -> float:
    """Seconds that ``lcbench WORDS`` takes in an empty folder, its end included."""
    folder = Path(tempfile.mkdtemp())
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_", "WANDB", "LCBENCH"))}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        began = time.perf_counter()
        command = [sys.executable, "-m", "lcbench", *words, "logger=none"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    finally:
        os.sched_setaffinity(0, before)
        shutil.rmtree(folder)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return seconds


def two_jobs(name: str, rounds: int) -> None:
    words, cores = SIZES[name], len(os.sched_getaffinity(0))
    threads = max(1, cores // 2)
    against_default, against_same = [], []
    for number in range(rounds):
        swept = run("-m", *words, "seed=0,1")
        default = sum(run(*words, f"seed={seed}") for seed in (0, 1))
        same = sum(run(*words, f"seed={seed}", threads=threads) for seed in (0, 1))
        against_default.append(swept / default)
        against_same.append(swept / same)
        print(
            f"{name} round {number + 1}: sweep {swept:.1f} s, one after the other {default:.1f} s with {cores} "
            f"threads, {same:.1f} s with {threads}; ratios {swept / default:.2f}, {swept / same:.2f}; "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    print(
        f"{name}: two jobs at a time take {statistics.median(against_default):.2f} of the time of one after the other "
        f"with {cores} threads, {statistics.median(against_same):.2f} with {threads} (medians of {rounds})\n"
    )


def overhead(jobs: int, rounds: int) -> None:
    """On one core, so that the sweep runs one job at a time and both do the same work."""
    one = {min(os.sched_getaffinity(0))}
    extra, startup = [], []
    seeds = ",".join(map(str, range(jobs)))
    for number in range(rounds):
        singles = sum(run(*TRIVIAL, f"seed={seed}", threads=1, cores=one) for seed in range(jobs))
        few = run("-m", *TRIVIAL, "seed=0", cores=one)
        many = run("-m", *TRIVIAL, f"seed={seeds}", cores=one)
        # the sweep's own start and end, once, and what each further job adds
        extra.append((many - few) / (jobs - 1) - singles / jobs)
        startup.append(few - singles / jobs)
        print(
            f"overhead round {number + 1}: {jobs} single commands {singles:.1f} s, a sweep of one {few:.1f} s, "
            f"of {jobs} {many:.1f} s; "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    print(
        f"overhead per job {statistics.median(extra):.2f} s over a single command, and "
        f"{statistics.median(startup):.2f} s once for the sweep itself, its imports included (medians of {rounds})\n"
    )


def imports(rounds: int) -> None:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        code = "import lcbench.composition, lcbench.engine.run, lcbench.sweep.command"
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - began)
    print(f"imports of a run: {statistics.median(times):.2f} s\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=6, help="trivial jobs of the overhead's sweep")
    parser.add_argument("--only", choices=[*SIZES, "overhead"])
    options = parser.parse_args()
    if options.only in (None, "overhead"):
        imports(options.rounds)
        overhead(options.jobs, options.rounds)
    for name in SIZES:
        if options.only in (None, name):
            two_jobs(name, options.rounds)


if __name__ == "__main__":
    main()
