"""Maps that a run has (``maps.json``): what its layers look at in one example. Read for the page, never made here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from lcbench.results.comparison import Row
from lcbench.results.runs import Unreadable

FILE = "maps.json"

#: runs of a section whose maps a page holds; each may be some 200 kB
MOST = 8


class Maps(pydantic.BaseModel):
    """One example, as some of its queries read it.

    Args:
        set, example: which one.
        step: updates of the network before it.
        tokens: the example's, as they are written.
        queries: the places of the queries that there are numbers of.
        layers: by layer and head, the numbers of each kind (``weights``; where the encoding counts also ``gates`` and
            ``positions``): ``[queries, keys up to the query]``.
    """

    set: str
    example: int
    step: int
    tokens: list[str]
    queries: list[int]
    layers: list[list[dict[str, list[list[float]]]]]

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Maps:
        if not all(0 <= query < len(self.tokens) for query in self.queries):
            raise ValueError("a query lies outside of the example")
        lengths = [query + 1 for query in self.queries]
        for heads in self.layers:
            for kinds in heads:
                for rows in kinds.values():
                    if [len(row) for row in rows] != lengths:
                        raise ValueError("its numbers are not those of the keys up to each query")
        return self


def maps_of(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], list[Unreadable]]:
    """The maps of the first run of each row that has some, of at most ``MOST`` rows, with its row and seed; and what
    could not be read."""
    found: list[dict[str, Any]] = []
    unreadable: list[Unreadable] = []
    for i, row in enumerate(rows):
        for run in row.runs:
            path = os.path.join(run.folder, FILE)  # noqa: PTH118 thousands of runs are asked
            if len(found) == MOST or not os.path.exists(path):  # noqa: PTH110
                continue
            try:
                maps = Maps.model_validate_json(Path(path).read_bytes())
            except (OSError, pydantic.ValidationError) as error:
                reason = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else str(error)
                unreadable.append(Unreadable(path, f"it holds no maps: {' '.join(reason.split())}"))
                continue
            found.append({"row": i, "seed": run.seed, **maps.model_dump()})
            break
    return found, unreadable
