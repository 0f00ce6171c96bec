"""How long `lcbench report` takes over many runs, how large its page is, and how long a browser takes to open it.

python benchmarks/report.py [--runs 1000] [--seeds 5] [--rounds 3]

Makes folders like those that runs leave (see compare.py), with curves of 200 rows. Opened is a page whose table
stands there and whose every figure is drawn, in Chromium through playwright.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compare import make_runs

CURVES = "step,seconds,tokens,tokens_per_second,learning_rate,loss,evaluation_error\n"


def add_curves(parent: Path, rows: int = 200) -> None:
    """A falling curve for every run."""
    draw = random.Random(1)
    for folder in (parent / "flip_flop").iterdir():
        scale = draw.uniform(20, 100)
        lines = [
            f"{step},{step / 100},{step * 4000},70000,0.001,{math.exp(-step / scale) + draw.random() / 10},"
            f"{0.5 * math.exp(-step / scale) if step % 50 == 0 else ''}\n"
            for step in range(10, 10 * rows + 10, 10)
        ]
        (folder / "metrics.csv").write_text(CURVES + "".join(lines))


def built(parent: Path, page: Path) -> float:
    """Seconds of the command."""
    command = [sys.executable, "-m", "lcbench", "report", str(parent), "--output", str(page)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def opened(page: Path, rounds: int) -> list[float]:
    """Seconds from asking for the page to its last figure."""
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for _ in range(rounds):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            start = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-ready]", state="attached")
            seconds.append(time.perf_counter() - start)
            tab.close()
        browser.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        parent, page = Path(temporary) / "outputs", Path(temporary) / "report.html"
        make_runs(parent, asked.runs, asked.seeds, old=False, evaluated=0)
        add_curves(parent)
        seconds = [built(parent, page) for _ in range(asked.rounds)]
        print(f"{asked.runs} runs, {asked.seeds} seeds a configuration, median of {asked.rounds}")
        print(f"built   {statistics.median(seconds):.2f} s, {page.stat().st_size / 2**20:.2f} MiB")
        print(f"opened  {statistics.median(opened(page, asked.rounds)):.2f} s")


if __name__ == "__main__":
    main()
