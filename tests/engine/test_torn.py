"""Killed inside every kind of write, a run ends as if nothing had happened.

A process in which everything is imported, and no thread was started, forks once for every kill: the copy runs the
command, and kills itself, as kill -9 would, at the n-th of its calls that change a file. A write is broken off after
half of its bytes, anything else before it happens.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from lcbench.engine.callbacks import load_checkpoint
from tests.conftest import TINY
from tests.engine.test_kill import equal

WORDS = [
    *TINY,
    "position=rope",
    "model.dropout=0.1",
    "trainer.max_steps=4",
    "trainer.log_every=1",
    "trainer.evaluate_every=2",
    "trainer.checkpoint_every=2",
    "trainer.progress=false",
    "evaluation.sets=[in_distribution,sparse]",
    "evaluation.examples=32",
    "optimizer.lr=0.01",
    "logger=csv",
]

DRIVER = '''
import builtins, io, json, os, signal, sys, threading
from lcbench.cli import main
import lcbench.composition, lcbench.engine.run, lcbench.logger.csv, lcbench.trained
import lcbench.model.decoder, lcbench.attention.full, lcbench.position.rope, lcbench.task.flip_flop

def run(words, kill_at, events):
    """The command in a copy of this process; returns how the copy ended."""
    assert len(os.listdir("/proc/self/task")) == 1, "a thread was started"
    child = os.fork()
    if child == 0:
        patch(kill_at, events)
        screen = os.open(os.devnull, os.O_WRONLY)
        os.dup2(screen, 1)
        os._exit(main(words))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def patch(kill_at, events):
    log = io.FileIO(events, "w") if events else None
    count = 0

    def reached(kind, path):
        nonlocal count
        count += 1
        if log:
            log.write(f"{kind} {os.path.basename(str(path))}\\n".encode())
        return count == kill_at

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def before(name, which=0):
        original = getattr(os, name)
        def call(*words, **named):
            path = words[which]
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            if reached(name, path):
                die()
            return original(*words, **named)
        setattr(os, name, call)

    for name, which in {"fsync": 0, "replace": 1, "link": 1, "unlink": 0}.items():
        before(name, which)

    class Torn:
        def __init__(self, file, path):
            self.file, self.path = file, path
        def write(self, data):
            if reached("write", self.path):
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                die()
            return self.file.write(data)
        def __getattr__(self, name):
            return getattr(self.file, name)
        def __enter__(self):
            return self
        def __exit__(self, *words):
            self.file.close()
        def __iter__(self):
            return iter(self.file)

    original = io.open
    def opened(file, mode="r", *words, **named):
        path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else file
        inside = os.environ["INSIDE"] in os.path.abspath(path)
        if not inside or not set(mode) & set("wax+"):
            return original(file, mode, *words, **named)
        if reached("open", path):
            die()
        return Torn(original(file, mode, *words, **named), path)
    io.open = builtins.open = opened

# what is imported or filled on first use is so in every copy
screen = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
assert main(json.loads(sys.stdin.readline())) == 0
os.dup2(screen, 1)
for line in sys.stdin:
    words, kill_at, events = json.loads(line)
    print(run(words, kill_at, events), flush=True)
'''


class Driver:
    """Runs commands in copies of one warmed-up process."""

    def __init__(self, folder: Path) -> None:
        (folder / "tmp").mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": f"{folder}/tmp", "INSIDE": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say([*WORDS, f"outputs={folder}/first"])

    def _say(self, words: list) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def run(self, outputs: Path, kill_at: int = 0, events: Path | None = None) -> int:
        assert self.process.stdout is not None
        self._say([[*WORDS, f"outputs={outputs}"], kill_at, str(events) if events else None])
        return int(self.process.stdout.readline())


def chosen(events: list[str]) -> list[int]:
    """Numbers of the calls to kill at: the first and the last of each kind on each file."""
    places = defaultdict(list)
    for number, event in enumerate(events, 1):
        # temporary names end in a process id or random letters
        kind, name = event.split()
        places[kind, ".".join(name.split(".")[:3])].append(number)
    return sorted({number for numbers in places.values() for number in (numbers[0], numbers[-1])})


def outcome(outputs: Path) -> dict:
    """All that must not depend on kills."""
    (folder,) = (path.parent for path in outputs.rglob("config.yaml"))
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "tokens_seen", "random")
    checkpoints = {name: load_checkpoint(folder / "checkpoints" / f"{name}.ckpt") for name in ("last", "best")}
    timed = ("seconds", "tokens_per_second")
    rows = [{k: v for k, v in r.items() if k not in timed} for r in csv.DictReader((folder / "metrics.csv").open())]
    record = json.loads((folder / "result.json").read_text())
    return {
        "checkpoints": {name: {part: found[part] for part in parts} for name, found in checkpoints.items()},
        "rows": rows,
        "record": {k: v for k, v in record.items() if not k.startswith(("cost/", "config/outputs"))},
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
        "scores": (folder / "scores.csv").read_text(),
    }


def test_a_run_killed_inside_any_write_ends_as_if_it_had_not_been(tmp_path):
    driver = Driver(tmp_path)
    assert driver.run(tmp_path / "whole", events=tmp_path / "events") == 0
    whole = outcome(tmp_path / "whole")
    assert [row["step"] for row in whole["rows"]] == ["1", "2", "3", "4"]
    assert whole["files"] == [
        ".lock",
        "checkpoints",
        *(f"checkpoints/{name}.ckpt" for name in ("best", "last", "previous")),
        "config.yaml",
        "metrics.csv",
        "result.json",
        "run.log",
        "scores.csv",
    ]
    events = (tmp_path / "events").read_text().splitlines()
    kills = chosen(events)
    assert len(kills) >= 20
    for number in kills:
        outputs, event = tmp_path / f"killed_{number}", events[number - 1]
        assert driver.run(outputs, kill_at=number) == -9, event
        assert driver.run(outputs) == 0, event
        found = outcome(outputs)
        for part, value in whole.items():
            assert equal(value, found[part]), f"{part}, killed at {event}"
    assert not list((tmp_path / "tmp").iterdir())
    driver.process.communicate()
