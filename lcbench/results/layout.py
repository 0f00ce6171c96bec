"""Columns of text side by side, and what to leave out where a terminal is too narrow for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.text import Text

#: what is left out first where the width does not hold everything
FIRST_OUT = (
    "train_flops",
    "wall_seconds",
    "peak_memory_bytes",
    "tokens_per_second",
    "parameters",
    "median",
    "incomplete",
)

#: what moves under the mean before it where the width does not hold both
UNDER = ("interval", "verdict", "solved")

#: a header is broken at its punctuation if it is wider
HEADER_WIDTH = 12


@dataclass(frozen=True)
class Column:
    """A column of text.

    Args:
        title: header.
        cells: one a row; lines are separated by a newline.
        kind: ``key``; a name in FIRST_OUT; ``mean``; one of UNDER; or empty for what is never left out.
        bold: rows to set in bold.
        left: whether it is aligned to the left.
    """

    title: str
    cells: tuple[str, ...]
    kind: str = ""
    bold: frozenset[int] = frozenset()
    left: bool = False

    @property
    def width(self) -> int:
        """Of its widest line."""
        return max(len(line) for text in (self.title, *self.cells) for line in text.split("\n"))


def fit(columns: Sequence[Column], width: int) -> tuple[list[Column], list[Column]]:
    """What fits ``width``, and what was left out for it.

    Long headers are broken, and keys that take more than half of the width are written into one column; then costs go,
    one by one; then intervals and what else belongs to a mean move under it; then medians go, then the counts of what
    is not completed (a note has their sum), then whole metrics from the right. One metric stays.
    """
    kept: list[Column] = list(columns)
    out: list[Column] = []
    if _width(kept) > width:
        kept = [replace(column, title=_broken(column.title)) for column in _together(kept, width // 2)]
    for kind in FIRST_OUT:
        if _width(kept) > width and kind == "median":
            kept = _stacked(kept)
        if _width(kept) > width:
            out += [column for column in kept if column.kind == kind]
            kept = [column for column in kept if column.kind != kind]
    while _width(kept) > width and sum(column.kind == "mean" for column in kept) > 1:
        last = max(i for i, column in enumerate(kept) if column.kind == "mean")
        out.append(kept[last])
        kept = kept[:last]
    return kept, out


def _together(columns: Sequence[Column], width: int) -> list[Column]:
    """Keys in one column, as overrides, unless they fit ``width``."""
    keys = [column for column in columns if column.kind == "key"]
    if not keys or _width([replace(column, title=_broken(column.title)) for column in keys]) <= width:
        return list(columns)
    cells = []
    for i in range(len(keys[0].cells)):
        words = [f"{column.title}={column.cells[i]}" for column in keys if column.cells[i]]
        cells.append("\n".join(_lines(words, " ", width)))
    return [Column("configuration", tuple(cells), left=True), *(c for c in columns if c.kind != "key")]


def _stacked(columns: Sequence[Column]) -> list[Column]:
    """What belongs to a mean under it."""
    stacked: list[Column] = []
    for column in columns:
        if column.kind in UNDER:
            place = max(i for i, above in enumerate(stacked) if above.kind == "mean")
            suffix = " solved" if column.kind == "solved" else ""
            lines = zip(stacked[place].cells, column.cells, strict=True)
            cells = tuple(f"{above}\n{cell}{suffix}" if cell else above for above, cell in lines)
            stacked[place] = replace(stacked[place], cells=cells)
        else:
            stacked.append(column)
    return stacked


def _broken(title: str) -> str:
    """The title in lines of at most HEADER_WIDTH, broken after its punctuation."""
    return "\n".join(_lines(re.findall(r"[^._/ ]+[._/ ]?", title), "", HEADER_WIDTH))


def _lines(words: Sequence[str], separator: str, width: int) -> list[str]:
    """The words in lines of at most ``width``, as far as words allow."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1] + separator + word) <= width:
            lines[-1] += separator + word
        else:
            lines.append(word)
    return lines


def laid_out(columns: Sequence[Column]) -> Text:
    """The columns side by side; rich's own table takes ten times as long over hundreds of rows."""
    text = Text()
    widths = [column.width for column in columns]
    _lay_row(
        text, [column.title.split("\n") for column in columns], columns, widths, ["bold"] * len(columns), below=True
    )
    for i in range(len(columns[0].cells)):
        styles = ["bold" if i in column.bold else "" for column in columns]
        _lay_row(text, [column.cells[i].split("\n") for column in columns], columns, widths, styles)
    text.right_crop(1)
    return text


def _lay_row(
    text: Text,
    cells: Sequence[list[str]],
    columns: Sequence[Column],
    widths: Sequence[int],
    styles: Sequence[str],
    below: bool = False,
) -> None:
    height = max(map(len, cells))
    padded = [
        [""] * (height - len(lines)) + lines if below else lines + [""] * (height - len(lines)) for lines in cells
    ]
    for number in range(height):
        for place, (column, width, style) in enumerate(zip(columns, widths, styles, strict=True)):
            line = padded[place][number]
            last = place == len(columns) - 1
            filled = (line if last else line.ljust(width)) if column.left else line.rjust(width)
            text.append(filled if last else f"{filled}  ", style=style or None)
        text.append("\n")


def _width(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + 2 * (len(columns) - 1)
