"""What stands behind a verb on the command line: options, and the words that are none. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lcbench.errors import ConfigurationError, closest


@dataclass(frozen=True)
class Options:
    """The options of a verb.

    Args:
        verb: its name.
        values: options that have a value, each with an example of it.
        flags: options that have none.
    """

    verb: str
    values: dict[str, str]
    flags: tuple[str, ...] = ()

    def parse(self, words: Sequence[str]) -> Parsed:
        """Read what the user typed after the verb.

        Raises:
            ConfigurationError: for an option that there is not, that lacks its value, has one too many, or comes
                twice.
        """
        parsed = Parsed()
        pending = list(words)
        while pending:
            word = pending.pop(0)
            if not word.startswith("--"):
                parsed.plain.append(word)
                continue
            name, equals, value = word.partition("=")
            if name in self.flags:
                if equals:
                    raise ConfigurationError(f"{word}: {name} has no value.")
                parsed.flags.add(name)
                continue
            if name not in self.values:
                known = [*self.values, *self.flags]
                raise ConfigurationError(f"{name}: {self.verb} has no such option; {closest(name, known)}")
            if not equals:
                value = pending.pop(0) if pending and not pending[0].startswith("--") else ""
            if not value:
                raise ConfigurationError(f"{name} needs a value, such as {name} {self.values[name]}.")
            if name in parsed.values:
                raise ConfigurationError(f"{name} stands there twice: {parsed.values[name]} and {value}; take one.")
            parsed.values[name] = value
        return parsed


@dataclass(frozen=True)
class Parsed:
    """The words that are no options, the options with their values, and the flags."""

    plain: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)


COMPARE = Options(
    "compare",
    {
        "--metric": "sparse/error",
        "--by": "position",
        "--sort": "sparse/error",
        "--against": "position=rope",
        "--solved": "0.01",
        "--csv": "table.csv",
        "--json": "table.json",
    },
)
REPORT = Options(
    "report",
    {
        "--output": "report.html",
        "--by": "position",
        "--against": "position=rope",
        "--solved": "0.01",
        "--experiments": "experiments",
    },
    ("--wandb",),
)
GENERATE = Options(
    "generate",
    {
        "--prompt": "'The pass key is'",
        "--file": "prompt.txt",
        "--tokens": "200",
        "--temperature": "0.8",
        "--top-p": "0.9",
        "--seed": "1",
    },
)
SHOW = Options("show", {"--document": "0", "--set": "in_distribution", "--example": "0"}, ("--maps",))
COST = Options(
    "cost",
    {
        "--lengths": "1k,4k,16k,64k",
        "--rounds": "5",
        "--seconds": "60",
        "--clock": "cpu",
        "--extrapolate": "1e9",
        "--csv": "cost.csv",
        "--json": "cost.json",
    },
    ("--model", "--memory"),
)

ALL = {options.verb: options for options in (COMPARE, REPORT, GENERATE, SHOW, COST)}
