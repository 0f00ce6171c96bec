"""What a study is: ``study.yaml`` in the folder of its record.

    # one line: what it is about, and the paper
    claim: one sentence
    source: the paper and its table
    experiments: [cope/flip_flop]
    commands: [lcbench -m experiment=cope/flip_flop]
    rows: [model, position]            # the keys that make a row; all others belong to the row
    metrics: [sparse/error]            # the columns
    where: {trainer.max_steps: 1000}   # what runs must have to belong to it
    seeds: [0, 1, 2, 3, 4]             # of the comparison
    tuning: {seeds: [100], key: optimizer.lr, metrics: [in_distribution/error]}
    paper:                             # its numbers, by values of the rows' keys
      rows:
        - {name: RoPE, where: {position: rope}, scores: {sparse/error: 0.203}}
    statements:                        # what must hold for the claim to hold
      - {metric: sparse/error, of: {position: cope}, below: [{position: rope}]}
      - {metric: in_distribution/error, of: {position: cope}, at_most: 0.01}
    differs: [what differs from the paper, a sentence each]

Everything that a record says beside what was measured stands here; the code knows no study.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pydantic
import yaml

from lcbench.errors import ConfigurationError, closest
from lcbench.results.keys import shown

FILE = "study.yaml"

#: values of keys, as a config has them
Where = dict[str, bool | int | float | str | None]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Tuning(_Part):
    """A key that was chosen for each row by itself, on seeds of its own.

    Args:
        seeds: of the search; none of them is in the comparison.
        key: what was chosen, such as ``optimizer.lr``.
        metrics: what it was chosen by: the lowest of the first, where that is the same of the next.
    """

    seeds: list[int]
    key: str
    metrics: list[str]


class PaperRow(_Part):
    """A row of the paper's table.

    Args:
        name: as the paper calls it.
        where: the values that our row has.
        scores: by ``evaluation set/metric``; shares from 0 to 1.
    """

    name: str
    where: Where
    scores: dict[str, float]


class Paper(_Part):
    """The paper's table, and what must be known of it."""

    note: str = ""
    rows: list[PaperRow] = []


class Statement(_Part):
    """A comparison that must hold.

    Args:
        metric: ``evaluation set/metric``.
        of: the row it is about.
        below, above: rows that it must be below or above, each a statement of its own.
        at_most, at_least: a bound that its interval must keep.
    """

    metric: str
    of: Where
    below: list[Where] = []
    above: list[Where] = []
    at_most: float | None = None
    at_least: float | None = None

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> Statement:
        if not (self.below or self.above) and self.at_most is None and self.at_least is None:
            raise ValueError("says nothing; give it below, above, at_most or at_least")
        return self


class Study(_Part):
    """A study; see the module's text."""

    claim: str
    source: str
    experiments: list[str] = pydantic.Field(min_length=1)
    commands: list[str] = pydantic.Field(min_length=1)
    rows: list[str] = pydantic.Field(min_length=1)
    metrics: list[str] = pydantic.Field(min_length=1)
    where: Where = {}
    seeds: list[int] | None = None
    solved: float = 0.01
    tuning: Tuning | None = None
    paper: Paper = Paper()
    statements: list[Statement] = pydantic.Field(min_length=1)
    differs: list[str] = []


def typed(where: Where) -> dict[str, str]:
    """The values as they are typed."""
    return {key: shown(value) for key, value in where.items()}


def named(where: Where) -> str:
    """The values alone, as a name of a row: ``cope variables=3``."""
    return " ".join(
        text if "." not in key else f"{key.rpartition('.')[2]}={text}" for key, text in typed(where).items()
    )


def read_study(path: Path) -> Study:
    """The study that a file defines.

    Raises:
        ConfigurationError: with one sentence, if it defines none.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path} is no study: not a table of keys and values.")
    try:
        return Study.model_validate(found)
    except pydantic.ValidationError as error:
        raise ConfigurationError(f"{path}: {_sentence(error, found)}") from None


def _sentence(error: pydantic.ValidationError, found: dict[str, Any]) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"{key}: no such key; {closest(key, Study.model_fields)}"
    if first["type"] == "missing":
        return f"{key} is missing."
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:].rstrip('.')}."


def studies_of(experiments: Iterable[str], folder: Path) -> dict[Path, Study]:
    """The studies below ``folder`` that are about any of these experiments, by the folder of their record."""
    wanted = set(experiments)
    found = {}
    for path in sorted(folder.rglob(FILE)) if folder.is_dir() else []:
        study = read_study(path)
        if wanted.intersection(study.experiments):
            found[path.parent] = study
    return found
