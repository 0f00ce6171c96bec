"""``lcbench cost``: its words, what it prints, what it writes."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lcbench.cost.board import Board
from lcbench.cost.figure import figure
from lcbench.cost.growth import Growth, Settings
from lcbench.cost.measure import CLOCKS
from lcbench.cost.plan import Plan, plan
from lcbench.cost.points import Store, facts
from lcbench.cost.show import show
from lcbench.cost.summary import QUANTITIES, Row, as_csv, as_data, summarise
from lcbench.errors import ConfigurationError, closest
from lcbench.lengths import parse_length
from lcbench.results.command import writable
from lcbench.results.record import hold, write_text
from lcbench.words import COST, Parsed

LENGTHS = "1k,2k,4k,8k,16k"


def cost_command(words: Sequence[str], overlays: Sequence[Path]) -> int:
    """Measure the compositions of ``words``; returns the exit code.

    Raises:
        ConfigurationError: for a mistake in the words.
    """
    parsed = COST.parse(words)
    overrides, options = _overrides(parsed), parsed.values
    if "--memory" in parsed.flags:
        return _footprints(overrides, [*options, *(parsed.flags - {"--memory"})], overlays)
    lengths = _lengths("--lengths", options.get("--lengths", LENGTHS))
    beyond = _lengths("--extrapolate", options["--extrapolate"]) if "--extrapolate" in options else []
    settings = Settings(
        rounds=int(_number("--rounds", options.get("--rounds", "5"), whole=True)),
        clock=_clock(options.get("--clock", "wall")),
        limit=_number("--seconds", options.get("--seconds", "30")),
    )
    alone = [name for name in ("--csv", "--json") if options.get(name) == "-"]
    if len(alone) > 1:
        raise ConfigurationError("--csv - and --json -: only one can go to the standard output; name a file for one.")
    files = {
        name: writable(name, options[name], COST.values[name])
        for name in ("--csv", "--json")
        if name in options and name not in alone
    }
    # a pipe's reader wants every column, and a line a row
    width = None if sys.stdout.isatty() else 160
    console = Console(highlight=False, stderr=bool(alone), width=width)
    with console.status("composing"):
        found = plan(overrides, overlays, "model" if "--model" in parsed.flags else "layer")
        folder = folder_of(found, settings)
        known = facts([subject.work for subject in found.subjects])
    with hold(folder / ".lock", folder):
        store = Store(folder, known, fresh=found.rerun)
        if store.forgotten:
            console.print(f"{store.forgotten}: measured again", markup=False, soft_wrap=True)
        rows, stopped = _measured(found, settings, store, lengths, beyond, console)
        measured = [row for row in rows if row.points]
        if not measured:
            console.print("nothing was measured", style="bold")
        elif not alone:
            show(console, rows, found, settings)
        _write(rows, found, store, console)
    texts = {"--csv": as_csv(rows), "--json": store.file.read_text()}
    for name, file in files.items():
        write_text(file, texts[name])
    if alone:
        print(texts[alone[0]], end="")
    if stopped:
        console.print("stopped by Ctrl-C; the same command continues")
        return 130
    return 0 if measured else 1


def _measured(
    found: Plan, settings: Settings, store: Store, lengths: Sequence[int], beyond: Sequence[int], console: Console
) -> tuple[list[Row], bool]:
    """The rows, and whether Ctrl-C came before the end: it costs what was not finished and no more."""
    stopped = False
    with Board(console) as board:
        growth = Growth(found.subjects, settings, store, board)
        try:
            growth.run(lengths)
        except KeyboardInterrupt:
            stopped = True
        if beyond and not stopped:
            board.show("counting further out", 0.0, None)
        return summarise(found, growth, [] if stopped else beyond), stopped


def _write(rows: Sequence[Row], found: Plan, store: Store, console: Console) -> None:
    """The files of the folder."""
    store.put([], **as_data(rows, found))
    write_text(store.path / "cost.csv", as_csv(rows))
    drawn = [row for row in rows if row.points]
    if drawn:
        subtitle = _subtitle(drawn[0])
        try:
            for quantity in QUANTITIES:
                figure(drawn, quantity, subtitle, [store.path / f"{quantity}.{kind}" for kind in ("svg", "png")])
        except ConfigurationError as error:
            console.print(str(error), markup=False, soft_wrap=True)
    console.print(f"\nwritten: {store.path}", markup=False, soft_wrap=True)


def _subtitle(row: Row) -> str:
    work = row.subject.work
    what = "whole network" if work.scope == "model" else f"one layer, d_model {work.shape.d_model}"
    numbers = "bfloat16 (mixed)" if work.precision == "bf16-mixed" else "float32"
    return f"{what}, batch 1, {numbers}, {work.device}; rings: where a line crosses full attention's (~ extrapolated)"


def folder_of(found: Plan, settings: Settings) -> Path:
    """Where a plan's points lie: readable, and 8 hex digits of what is measured and how, lengths apart."""
    labels = "_".join(subject.label for subject in found.subjects if subject.reference != subject.work.identity)
    words = [subject.work.identity for subject in found.subjects] + [str(settings.rounds), settings.clock]
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", labels).strip("-")[:80] or "full"
    return found.outputs / "cost" / f"{slug}-{digest}"


def _footprints(overrides: Sequence[str], others: Sequence[str], overlays: Sequence[Path]) -> int:
    from lcbench.footprint import footprint_table, footprints

    if others:
        raise ConfigurationError(f"{others[0]}: cost --memory takes overrides only, such as attention=infini,full.")
    console = Console(highlight=False)
    with console.status("measuring"):
        found = footprints(overrides, overlays)
    console.print(footprint_table(found))
    return 0


def _overrides(parsed: Parsed) -> list[str]:
    for word in parsed.plain:
        if "=" not in word and not word.startswith("~"):
            raise ConfigurationError(f"{word}: an override is key=value, such as attention=infini,full.")
    return parsed.plain


def _lengths(name: str, text: str) -> list[int]:
    found = set()
    for word in text.split(","):
        try:
            length = parse_length(int(word) if word.strip().isdigit() else word)
        except ValueError:
            raise ConfigurationError(
                f"{name} {text}: {word!r} is not a number of tokens; the closest to write is "
                f"{name} {COST.values[name]}."
            ) from None
        if length < 1:
            raise ConfigurationError(f"{name} {text}: {word} is no length; the least is 1.")
        found.add(length)
    return sorted(found)


def _number(name: str, text: str, whole: bool = False) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = 0
    if not value > 0:
        kind = "a whole number" if whole else "a number"
        raise ConfigurationError(f"{name} {text}: must be {kind} above 0, such as {name} {COST.values[name]}.")
    return value


def _clock(text: str) -> str:
    if text not in CLOCKS:
        raise ConfigurationError(f"--clock {text}: no such clock; {closest(text, CLOCKS)}")
    return text
