"""The words of ``lcbench generate`` and of ``lcbench show RUN`` with options, and what they print."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from lcbench.errors import ConfigurationError, closest
from lcbench.lengths import parse_length

#: options of `generate`, each with an example of its value
GENERATE = {
    "--prompt": "'The pass key is'",
    "--file": "prompt.txt",
    "--tokens": "200",
    "--temperature": "0.8",
    "--top-p": "0.9",
    "--seed": "1",
}


def generate_command(words: Sequence[str], trust: bool) -> int:
    """Write what a run's network makes of a prompt, as it is drawn; returns the exit code."""
    path, options = run_and_options("generate", words, GENERATE, ())
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


def run_and_options(
    verb: str, words: Sequence[str], values: Mapping[str, str], flags: Sequence[str]
) -> tuple[Path, dict[str, str]]:
    """The run's folder and what options say; a flag says nothing.

    Args:
        verb: what the words belong to.
        words: what the user typed after it.
        values: options that have a value, each with an example.
        flags: options that have none.
    """
    paths: list[str] = []
    options: dict[str, str] = {}
    pending = list(words)
    while pending:
        word = pending.pop(0)
        if not word.startswith("--"):
            paths.append(word)
            continue
        name, equals, value = word.partition("=")
        if name not in values and name not in flags:
            raise ConfigurationError(f"{name}: {verb} has no such option; {closest(name, [*values, *flags])}")
        if name in flags and equals:
            raise ConfigurationError(f"{word}: {name} has no value.")
        if name in values and not equals:
            if not pending:
                raise ConfigurationError(f"{name} needs a value, such as {name} {values[name]}.")
            value = pending.pop(0)
        if name in options:
            raise ConfigurationError(f"{name} stands there twice; take one.")
        options[name] = value
    if len(paths) != 1 or "=" in paths[0]:
        raise ConfigurationError(
            f"{verb} takes one run's folder, then options: lcbench {verb} outputs/flip_flop/default-1a2b3c4d "
            f"{next(iter(values))} {values[next(iter(values))]}."
        )
    return Path(paths[0]), options


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
        raise ConfigurationError(f"{name} {text}: must be a number, such as {name} {GENERATE[name]}.") from None


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


#: options of `show RUN` with a value, and without
SHOW = {"--document": "0", "--set": "in_distribution", "--example": "0"}
SHOW_FLAGS = ("--maps",)


def show_command(words: Sequence[str], console: Console, trust: bool) -> int:
    """Show what a run's network makes of one example; returns the exit code."""
    path, options = run_and_options("show", words, SHOW, SHOW_FLAGS)
    if not {"--document", "--maps"} & options.keys():
        first = next(iter(options))
        raise ConfigurationError(f"{first} says of what, not what to show: add --document N or --maps.")
    if "--example" in options and "--maps" not in options:
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
        if "--maps" in options:
            number = whole("--example", options.get("--example", "0"))
            example = example_of(path, options.get("--set"), number, progress, trust, document=False)
            files, said = write_maps(example)
            lines += [*(f"maps {file}" for file in files), said]
    for line in lines:
        if line:
            console.print(line, soft_wrap=True, markup=False)
    return 0
