"""What text costs beside training: the input pipeline against a model, a warm start, memory against corpus size.

    python benchmarks/text.py [--megabytes 64,512,2048]

Corpora are generated in a temporary folder and removed. The model is that of experiment=alibi/python_stdlib, the
forward and backward pass of a step on one thread; speeds are by the processor's time, so that other work counts less.
Memory is what the process cannot give back: pages of a mapped file are the system's, which drops them at need.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What ``work`` returns in a process of its own, and the memory that it holds."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, arguments))


def _measured(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    import lcbench.dataset.concatenated
    import lcbench.task.language_modelling  # noqa: F401 what is imported anyway is no cost of a corpus

    before = _own_mebibytes()
    watch = _Watch()
    found = work(*arguments)
    return {**found, "more memory (MiB)": round(watch.most() - before, 1)}


def _own_mebibytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


class _Watch:
    """The most memory, looked at every hundredth of a second."""

    def __init__(self) -> None:
        self._most, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.01):
            self._most = max(self._most, _own_mebibytes())

    def most(self) -> float:
        self._done.set()
        self._thread.join()
        return max(self._most, _own_mebibytes())


def generate(folder: Path, megabytes: int) -> None:
    """Files of 16 MB of words that do not compress to nothing."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = np.array([f"{word:x} " for word in rng.integers(2**24, size=4096)])
    for number in range(max(3, megabytes // 16)):
        text = "".join(words[rng.integers(len(words), size=2**18)])
        with (folder / f"{number}.txt").open("w") as file:
            size = 0
            while size < megabytes * 10**6 / max(3, megabytes // 16):
                size += file.write(f"{size} {text}")


def read(folder: str) -> dict[str, Any]:
    """Read a corpus for the first or a later time, and draw 200 batches."""
    from lcbench.corpus.text_files import TextFiles
    from lcbench.dataset.concatenated import Concatenated
    from lcbench.task.language_modelling import LanguageModelling
    from lcbench.tokenizer.bytes import Bytes

    began = time.perf_counter()
    dataset = Concatenated(LanguageModelling(TextFiles(path=folder), Bytes()), 0, 32)
    dataset.batch(0)
    ready = time.perf_counter() - began
    began, tokens = time.process_time(), 0
    for batch in dataset.loader(1, 200):
        tokens += batch.tokens.numel()
    drawn = tokens / (time.process_time() - began)
    return {"seconds until the first batch": round(ready, 2), "tokens/s drawn": round(drawn)}


def pipeline() -> dict[str, Any]:
    """Tokens a second of the processor: drawn, and trained on."""
    import torch

    from lcbench.composition import build, compose
    from lcbench.engine.tally import facts_of
    from lcbench.objective.next_token import next_token_loss

    torch.set_num_threads(1)
    found = {}
    words = ["experiment=alibi/python_stdlib", "logger=none", "trainer.device=cpu"]
    for name in ("synthetic", "concatenated", "contiguous"):
        dataset = build(compose([*words, f"dataset={name}"])).dataset
        dataset.batch(0)
        began, tokens = time.process_time(), 0
        for batch in dataset.loader(1, 100):
            tokens += batch.tokens.numel()
        found[name] = tokens / (time.process_time() - began)
    model = build(compose(words)).make_model()
    began = time.process_time()
    for _ in range(4):
        next_token_loss(model(batch.tokens, facts_of(batch)), batch).backward()
    trained = 4 * batch.tokens.numel() / (time.process_time() - began)
    return {
        "tokens/s trained": round(trained),
        **{f"{k}, times as fast": round(v / trained) for k, v in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", default="64,512", help="sizes of generated corpora")
    sizes = [int(size) for size in parser.parse_args().megabytes.split(",")]
    print(json.dumps({"pipeline": apart(pipeline)}, indent=1))
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LCBENCH_CACHE"] = str(Path(folder, "cache"))
            texts = Path(folder, "texts")
            texts.mkdir()
            generate(texts, size)
            for when in ("first time", "again"):
                print(json.dumps({f"{size} MB, {when}": apart(read, str(texts))}))
                sys.stdout.flush()


if __name__ == "__main__":
    main()
