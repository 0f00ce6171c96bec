"""The words of ``lcbench generate`` and of ``lcbench show RUN`` with options, and what they print."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from lcbench.errors import ConfigurationError
from lcbench.lengths import parse_length
from lcbench.words import GENERATE, SHOW, Options, Parsed


def generate_command(words: Sequence[str], trust: bool) -> int:
    """Write what a run's network makes of a prompt, as it is drawn; returns the exit code."""
    parsed = GENERATE.parse(words)
    path, options = _run(parsed, GENERATE), parsed.values
    prompt = _prompt(options)
    from lcbench.inside.generate import generate

    pieces = generate(
        path,
        prompt,
        tokens=_length("--tokens", options["--tokens"]) if "--tokens" in options else None,
        temperature=_number("--temperature", options.get("--temperature", "1")),
        top_p=_number("--top-p", options.get("--top-p", "1")),
        seed=whole("--seed", options.get("--seed", "0")),
        trust=trust,
    )
    shown = _harmless if sys.stdout.isatty() else str
    encoding = sys.stdout.encoding or "utf-8"
    for piece in pieces:
        # a terminal that cannot write a character shows a question mark
        print(shown(piece).encode(encoding, "replace").decode(encoding), end="", flush=True)
    print()
    return 0


def _run(parsed: Parsed, verb: Options) -> Path:
    """The one folder that the words name."""
    if len(parsed.plain) != 1 or "=" in parsed.plain[0]:
        name, example = next(iter(verb.values.items()))
        raise ConfigurationError(
            f"{verb.verb} takes one run's folder, then options: lcbench {verb.verb} "
            f"outputs/flip_flop/default-1a2b3c4d {name} {example}."
        )
    return Path(parsed.plain[0])


def _prompt(options: Mapping[str, str]) -> str:
    """The text of the file, if there is one, and what is to be added to it."""
    if not {"--prompt", "--file"} & options.keys():
        raise ConfigurationError(
            "generate needs a prompt: --prompt TEXT, or --file FILE, where - is the standard input; with both, the "
            "file's text comes first."
        )
    return _file(options.get("--file")) + options.get("--prompt", "")


def _file(name: str | None) -> str:
    if name is None:
        return ""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--file {name} cannot be read: {error.strerror}.") from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--file {name} is no UTF-8 text: byte {error.start} is none.") from None


def _harmless(text: str) -> str:
    """``text`` without what would command the terminal."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"{name} {text}: must be a number, such as {name} {GENERATE.values[name]}.") from None


def whole(name: str, text: str) -> int:
    """The whole number that an option says.

    Raises:
        ConfigurationError: if it is none.
    """
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(f"{name} {text}: must be a whole number, such as {name} 1.") from None


def _length(name: str, text: str) -> int:
    try:
        return parse_length(text)
    except ValueError:
        raise ConfigurationError(f"{name} {text}: must be a number of tokens, such as {name} 200 or 1k.") from None


def show_command(words: Sequence[str], console: Console, trust: bool) -> int:
    """Show what a run's network makes of one example; returns the exit code."""
    parsed = SHOW.parse(words)
    path, options, maps = _run(parsed, SHOW), parsed.values, "--maps" in parsed.flags
    if not maps and "--document" not in options:
        first = next(iter(options))
        raise ConfigurationError(f"{first} says of what, not what to show: add --document N or --maps.")
    if "--example" in options and not maps:
        raise ConfigurationError("--example is which example --maps shows; with --document, say its number there.")
    from lcbench.engine.progress import Progress
    from lcbench.inside.document import document_page
    from lcbench.inside.maps import write_maps
    from lcbench.inside.reading import example_of

    lines: list[str | None] = []
    with Progress(console, True) as progress:
        if "--document" in options:
            number = whole("--document", options["--document"])
            example = example_of(path, options.get("--set"), number, progress, trust, document=True)
            progress.begin("reading", example.batch.tokens.shape[1])
            lines.append(f"page {document_page(example, progress.tick)}")
        if maps:
            number = whole("--example", options.get("--example", "0"))
            example = example_of(path, options.get("--set"), number, progress, trust, document=False)
            files, said = write_maps(example)
            lines += [*(f"maps {file}" for file in files), said]
    for line in lines:
        if line:
            console.print(line, soft_wrap=True, markup=False)
    return 0
