"""Names of evaluation sets in a grid of length and depth. Imports nothing heavy: results are read with it.

    length_1k_depth_50            1000 tokens, the fact half-way down
    noise_length_4x_depth_0       4 times the training length, another haystack, the fact at the very start
    depth_100                     lengths as in training, the fact at the very end
    length_1M                     a million tokens, the fact anywhere

Depth is in whole percent of the haystack that lies before the fact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lcbench.lengths import parse_length

_NAME = re.compile(
    r"(?P<base>\w+?)??(?:(?:^|_)length_(?:(?P<times>\d+)x|(?P<tokens>\d+[kM]?)))?(?:(?:^|_)depth_(?P<depth>\d+))?"
)


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Args:
        base: the distribution's name; empty for the training distribution.
        length: tokens of an example, answer included; None for lengths as in training.
        depth: percent of the haystack before the fact; None for anywhere.
    """

    base: str
    length: int | None
    depth: int | None

    @property
    def name(self) -> str:
        """The evaluation set of this cell, its length written out in tokens."""
        parts = [
            self.base,
            "" if self.length is None else f"length_{self.length}",
            "" if self.depth is None else f"depth_{self.depth}",
        ]
        return "_".join(part for part in parts if part) or "in_distribution"


def parse_cell(evaluation_set: str, training_length: int | None = None) -> Cell | None:
    """The cell that ``evaluation_set`` names; None if the name is none of a grid's.

    Args:
        evaluation_set: its name; ``in_distribution`` is the cell without length and depth.
        training_length: what ``length_4x`` multiplies; without it such a name has no cell.
    """
    match = _NAME.fullmatch(evaluation_set)
    if match is None or (match["times"] and training_length is None):
        return None
    length = parse_length(match["tokens"]) if match["tokens"] else None
    if match["times"] and training_length is not None:
        length = int(match["times"]) * training_length
    depth = int(match["depth"]) if match["depth"] else None
    base = match["base"] or ""
    if depth is not None and depth > 100:
        return None
    return Cell("" if base == "in_distribution" else base, length, depth)
