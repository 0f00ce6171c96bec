"""Streams one long passkey prompt through an untrained network of each mechanism: memory and time against length.

    python benchmarks/streaming.py [--lengths 10k,100k,1M] [--only infini,linear] [--chunk 4096]

One process a point, so that the peak is that point's own. The network has 2 layers of width 64; memories are bounded.
The last columns are the peak at the longest length over that at the shortest, and the exponent of the time's growth.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time

from lcbench.lengths import parse_length

SMALL = ["task=passkey", "logger=none", "position=rope"]
MECHANISMS: dict[str, list[str]] = {
    "infini": ["attention=infini", "attention.segment=128"],
    "linear": ["attention=linear", "position=none"],
    "sliding_window": ["attention=sliding_window", "attention.window=128"],
    "transformer_xl": ["attention=transformer_xl", "attention.segment=128", "attention.memory=128"],
    "compressive": ["attention=compressive", "attention.segment=128", "attention.compressed_memory=128"],
    "recurrent_memory": ["model=recurrent_memory", "model.segment=128", "model.slots=16"],
    "memorizing": ["attention=memorizing", "attention.segment=128", "attention.cache=128", "attention.memory=2k"],
}


def point(words: list[str], length: int, chunk: int) -> dict[str, float]:
    """Peak memory and time of one prompt of ``length`` tokens, the number at its beginning."""
    import lcbench
    from lcbench.composition import build, compose
    from lcbench.engine.streaming import stream_score

    experiment, model = build(compose(words)), lcbench.build_model(words)
    options = {"examples": 1, "batch_size": 1, "seed": 0, "device": "cpu", "objective": experiment.objective}
    stream_score(model, experiment.task, "length_4k_depth_0", chunk=chunk, **options)  # what is made once
    began = time.perf_counter()
    found = stream_score(model, experiment.task, f"length_{length}_depth_0", chunk=chunk, **options)
    return {**found.costs, "all_seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="10k,100k,1M")
    parser.add_argument("--only", default=",".join(MECHANISMS))
    parser.add_argument("--chunk", type=int, default=4096)
    parser.add_argument("--point", nargs=2)
    chosen = parser.parse_args()
    if chosen.point:
        name, length = chosen.point
        print(json.dumps(point([*SMALL, *MECHANISMS[name]], int(length), chosen.chunk)))
        return
    lengths = [parse_length(word) for word in chosen.lengths.split(",")]
    titles = [f"{length:,} tokens" for length in lengths]
    print(
        f"{'':<18}" + "".join(f"{title:>24}" for title in titles) + f"{'peak ratio':>12}{'exponent':>10}{'state':>12}"
    )
    for name in chosen.only.split(","):
        found = []
        for length in lengths:
            words = [sys.executable, __file__, "--chunk", str(chosen.chunk), "--point", name, str(length)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        cells = [f"{one['peak_memory_bytes'] / 2**20:.0f} MiB {one['seconds']:.2f} s" for one in found]
        peak = found[-1]["peak_memory_bytes"] / found[0]["peak_memory_bytes"]
        growth = math.log(found[-1]["seconds"] / found[0]["seconds"]) / math.log(lengths[-1] / lengths[0])
        state = f"{found[-1]['state_bytes'] / 1024:.1f} KiB"
        print(f"{name:<18}" + "".join(f"{cell:>24}" for cell in cells) + f"{peak:>12.3f}{growth:>10.2f}{state:>12}")


if __name__ == "__main__":
    main()
