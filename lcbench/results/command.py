"""``lcbench compare PATHS``: its words, what it prints, what it writes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console

from lcbench.errors import ConfigurationError
from lcbench.results.compare import compare
from lcbench.results.export import as_csv, as_json
from lcbench.results.record import write_text
from lcbench.results.render import render
from lcbench.words import COMPARE

FORMATS = {"--csv": as_csv, "--json": as_json}


def compare_command(words: list[str]) -> int:
    """Compare the runs at or below the paths in ``words``; returns the exit code."""
    parsed = COMPARE.parse(words)
    paths, options = parsed.plain, parsed.values
    if not paths:
        raise ConfigurationError("compare takes folders of runs: lcbench compare outputs.")
    alone = [name for name in FORMATS if options.get(name) == "-"]
    if len(alone) > 1:
        raise ConfigurationError(
            "--csv - and --json -: only one can go to the standard output; name a file for the other."
        )
    files = {
        name: writable(name, options[name], COMPARE.values[name])
        for name in FORMATS
        if name in options and name not in alone
    }
    comparison = compare(
        paths,
        metrics=names(options.get("--metric", "")),
        by=names(options.get("--by", "")),
        sort=options.get("--sort"),
        solved=share(options.get("--solved", "0.01")),
        against=selectors(options["--against"]) if "--against" in options else None,
    )
    for name, file in files.items():
        write_text(file, FORMATS[name](comparison))
    if alone:
        print(FORMATS[alone[0]](comparison), end="")
        return 0
    # a pipe's reader wants every column, and a line a row
    render(comparison, Console(highlight=False, width=None if sys.stdout.isatty() else 100_000))
    for file in files.values():
        # said beside the table, so that a piped table holds nothing else
        print(f"written: {file}", file=sys.stderr)
    return 0


def names(text: str) -> list[str]:
    """Words that commas part."""
    return [word.strip() for word in text.split(",") if word.strip()]


def share(text: str) -> float:
    """What ``--solved`` says.

    Raises:
        ConfigurationError: if it is no number.
    """
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"--solved {text}: must be an error between 0 and 1, such as 0.01.") from None


def selectors(text: str) -> dict[str, str]:
    """The keys and values that ``--against`` names.

    Raises:
        ConfigurationError: for what is none.
    """
    # a comma inside a list is not followed by a key
    selectors = dict(part.partition("=")[::2] for part in re.split(r",(?=[\w.]+=)", text))
    for key, value in selectors.items():
        if not key or not value:
            raise ConfigurationError(f"--against {text}: a baseline is key=value, such as position=rope.")
    return selectors


def writable(name: str, text: str, example: str) -> Path:
    """The file that an option names, if it can be written; ``example``: how such a file may be called.

    Raises:
        ConfigurationError: if it cannot.
    """
    file = Path(text)
    if not file.parent.is_dir():
        raise ConfigurationError(f"{name} {text}: there is no folder {file.parent}; make it first.")
    if file.is_symlink() or (file.exists() and not file.is_file() and not file.is_dir()):
        # replaced as a whole, /dev/stdout would be lost to all other processes
        raise ConfigurationError(f"{name} {text}: is no ordinary file; {name} - writes to the standard output.")
    if file.is_dir():
        raise ConfigurationError(f"{name} {text}: is a folder; name a file, such as {file / example}.")
    return file
