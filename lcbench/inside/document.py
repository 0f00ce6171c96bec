"""A text as a page that opens from a file: each token coloured by what it costs the network, in bits."""

from __future__ import annotations

import codecs
import html
import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from lcbench.dataset.base import Batch
from lcbench.inside.reading import Example, bits_of
from lcbench.results.record import write_text
from lcbench.task.base import Task
from lcbench.task.landmarked import Landmarked
from lcbench.task.language_modelling import LanguageModelling
from lcbench.task.spelling import Spelling

#: least bits of each colour but the first; the same on every page, so that pages can be compared
BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)


#: what all pages share; @NAMES@ are put in
PAGE = Path(__file__).with_name("document.html")


@dataclass(frozen=True)
class Token:
    """A token as it is shown.

    Args:
        text: its UTF-8, which may end within a character.
        position: of the token in the example, from 0.
        bits: what it costs; None where it is not scored.
        answer: whether it stands for an answer that is asked for and not written in the example.
    """

    text: bytes
    position: int
    bits: float | None
    answer: bool = False


@dataclass(frozen=True)
class Unit:
    """The fewest tokens that end with a whole character, and their text."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def bits(self) -> float | None:
        """The mean of its tokens'; None where none is scored."""
        scored = [token.bits for token in self.tokens if token.bits is not None]
        return sum(scored) / len(scored) if scored else None


def document_page(example: Example, tick: Callable[[int], None]) -> Path:
    """Write the page of an example into its run's folder.

    Returns:
        Where it is.
    """
    bits = bits_of(example, tick)
    task, batch = example.experiment.task, example.batch
    values = bits[None]
    if task.insertion is not None:
        batch, values = task.insertion.remove(batch), task.insertion.at_questions(values)
    tokens = tokens_of(batch, values[0], task.spelling)
    run = example.folder.path.resolve().name
    facts = {
        "set": f"{example.evaluation_set}, number {example.number}",
        "weights": f"after {example.trained.step:,} updates",
        **_cut(example),
        "scored": f"{sum(token.bits is not None for token in tokens):,} of {len(tokens):,} tokens",
        **_means(tokens, isinstance(_inner(task), LanguageModelling)),
    }
    path = example.folder.path / "documents" / f"{example.name}.html"
    write_text(path, page(tokens, facts, f"{example.name} of {run}"))
    return path


def _inner(task: Task) -> Task:
    """The task without landmarks."""
    return task.task if isinstance(task, Landmarked) else task


def _cut(example: Example) -> dict[str, str]:
    """What a text has beyond what is shown."""
    task = _inner(example.experiment.task)
    if not isinstance(task, LanguageModelling):
        return {}
    whole = int(task.documents.lengths[int(example.batch.facts["document"][0])])
    most = None if task.max_document is None else task.max_document + 1
    return {} if most is None or whole <= most else {"cut": f"after {most:,} of {whole:,} tokens (task.max_document)"}


def tokens_of(batch: Batch, bits: Tensor, spelling: Spelling) -> list[Token]:
    """The tokens of a batch of one row, with the bits ``[time]`` of its targets.

    Where every scored target is the next token, as in a text, it is shown there; else behind the token that asks.
    """
    length = batch.tokens.shape[1] if batch.padding is None else int((~batch.padding[0]).sum())
    ids, targets = batch.tokens[0, :length].cpu().numpy(), batch.targets[0, :length].cpu().numpy()
    scored, values = batch.scored[0, :length].tolist(), bits[:length].tolist()
    whole = [*ids.tolist(), int(targets[-1])] if length and scored[-1] else ids.tolist()
    inline = all(targets[t] == whole[t + 1] for t in range(length) if scored[t])

    def spelled(token: int) -> bytes:
        return spelling.to_bytes(np.array([token], np.int64))

    if inline:
        found = [Token(spelled(whole[0]), 0, None)] if whole else []
        for place in range(1, len(whole)):
            found.append(Token(spelled(whole[place]), place, values[place - 1] if scored[place - 1] else None))
        return found
    found = []
    for place in range(length):
        found.append(Token(spelled(int(ids[place])), place, None))
        if scored[place]:
            found.append(Token(spelled(int(targets[place])), place, values[place], answer=True))
    return found


def units_of(tokens: Sequence[Token]) -> Iterator[Unit]:
    """Tokens together that share a character; bytes that are no UTF-8 become replacement characters."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pending: list[Token] = []
    for token in tokens:
        pending.append(token)
        text = decoder.decode(token.text)
        if text or not token.text:
            # what is left of a character belongs to the next unit, but its tokens are shown once
            yield Unit(text, tuple(pending))
            pending = []
    rest = decoder.decode(b"", final=True)
    if pending or rest:
        yield Unit(rest, tuple(pending))


def _means(tokens: Sequence[Token], text: bool) -> dict[str, str]:
    scored = [(token.bits, len(token.text)) for token in tokens if token.bits is not None]
    if not scored:
        return {}
    total = sum(bits for bits, _ in scored)
    size = sum(size for _, size in scored)
    # symbols have no bytes of their own
    per_byte = {} if not text or not size else {"bits per byte": f"{total / size:.3f}"}
    return {"bits per token": f"{total / len(scored):.3f}", **per_byte}


def page(tokens: Sequence[Token], facts: dict[str, str], title: str) -> str:
    """The whole page; everything in it that comes from a text or a run is escaped."""
    body = "".join(_span(unit) for unit in units_of(tokens))
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items()
    )
    shades = "".join(f".b{level}{{--share:{_share(level)}%}}" for level in range(len(BOUNDS) + 1))
    legend = "".join(f'<li class="b{level}">{_least(level)}</li>' for level in range(len(BOUNDS) + 1))
    values = {"TITLE": html.escape(title), "FACTS": rows, "SHADES": shades, "LEGEND": legend, "BODY": body}
    # in one pass: what is put in is not searched for more
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], PAGE.read_text())


def _share(level: int) -> int:
    """Percent of the strongest colour."""
    return round(100 * (level / len(BOUNDS)) ** 1.2)


def _least(level: int) -> str:
    if level == 0:
        return f"&lt; {BOUNDS[0]:g}"
    return f"{BOUNDS[level - 1]:g}" + (" and more" if level == len(BOUNDS) else "")


def _span(unit: Unit) -> str:
    bits, answer = unit.bits, any(token.answer for token in unit.tokens)
    classes = (["u"] if bits is None else [f"b{level_of(bits)}"]) + (["a"] if answer else [])
    text = visible(unit.text)
    return f'<i class="{" ".join(classes)}" title="{html.escape(_about(unit))}">{html.escape(text)}</i>'


def level_of(bits: float) -> int:
    """Which colour: from 0 to ``len(BOUNDS)``."""
    return len(BOUNDS) if math.isnan(bits) else bisect_right(BOUNDS, bits)


def _about(unit: Unit) -> str:
    positions = sorted({token.position for token in unit.tokens})
    where = f"position {positions[0]}" + (f" to {positions[-1]}" if len(positions) > 1 else "")
    scored = [token.bits for token in unit.tokens if token.bits is not None]
    cost = " + ".join(f"{bits:.2f}" for bits in scored) + " bits" if scored else "not scored"
    what = "answer, asked at " if any(token.answer for token in unit.tokens) else ""
    return f"{unit.text!r}: {cost}, {what}{where}"


def visible(text: str) -> str:
    """``text`` with a sign for each line's end, and codes for what cannot be seen or would turn text around."""
    return "".join(
        "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n" if c == "\n"
        else c if c == "\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        else f"\\u{ord(c):04x}"
        for c in text
    )  # fmt: skip
