"""How long the command takes to answer, beside `python -c pass`, and from Enter to the first training step.

python benchmarks/startup.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(words: list[str]) -> float:
    """Wall time of a process."""
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - began


def to_first_step(logger: str) -> float:
    """Seconds from starting the process to the first row of metrics.csv."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*LCBENCH, f"outputs={folder}", "trainer.log_every=1", f"logger={logger}", "trainer.max_steps=100000"]
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not any(len(p.read_text().splitlines()) > 1 for p in Path(folder).rglob("metrics.csv")):
                if process.poll() is not None:
                    raise SystemExit("the run ended before its first step")
                time.sleep(0.01)
            return time.perf_counter() - began
        finally:
            process.kill()
            process.wait()


LCBENCH = [str(Path(sys.executable).with_name("lcbench"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "lcbench --help": [*LCBENCH, "--help"],
        "tab completion": [*LCBENCH, "--complete", "lcbench model.n_"],
        "lcbench list": [*LCBENCH, "list"],
        "a misspelt choice": ["sh", "-c", f"{LCBENCH[0]} position=cop || true"],
    }
    for name, words in commands.items():
        print(f"{name:<24} {statistics.median(seconds(words) for _ in range(rounds)):.3f} s", flush=True)
    for logger in ("none", "wandb"):
        times = [to_first_step(logger) for _ in range(max(1, rounds // 2))]
        print(f"first step, logger={logger:<5} {statistics.median(times):.2f} s (the first time {times[0]:.2f} s)")


if __name__ == "__main__":
    main()
