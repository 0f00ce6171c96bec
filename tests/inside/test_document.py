"""A document's page: bits are those of a whole forward pass, the text is all there, and nothing in it is mark-up."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lcbench.cli import main
from lcbench.engine.progress import Progress
from lcbench.inside.document import BOUNDS, Token, level_of, units_of, visible
from lcbench.inside.reading import bits_of, example_of


class Spans(HTMLParser):
    """The text of every coloured token, its class and its title."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[list[str]] = []
        self.tags: set[str] = set()
        self._inside = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._inside = tag == "i"
        if self._inside:
            given = dict(attributes)
            self.spans.append(["", given["class"] or "", given["title"] or ""])

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.spans[-1][0] += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def page_of(run: Path, number: int, capsys: pytest.CaptureFixture[str]) -> Spans:
    assert main(["show", str(run), "--document", str(number)]) == 0
    path = Path(capsys.readouterr().out.split("page ", 1)[1].strip())
    spans = Spans()
    spans.feed(path.read_text())
    return spans


@pytest.mark.parametrize("which", ["text_run", "flip_flop"])
def test_bits_are_those_of_a_whole_forward_pass(which: str, request: pytest.FixtureRequest) -> None:
    progress = Progress(Console(quiet=True), False)
    example = example_of(request.getfixturevalue(which), None, 0, progress, False, document=True)
    batch = example.batch
    with torch.no_grad():
        scores = example.trained.model(batch.tokens.long()).logits[0].double()
    p = scores.softmax(-1).gather(-1, batch.targets[0].long()[:, None])[:, 0]
    expected = torch.where(batch.scored[0], -p.log2(), 0.0)
    torch.testing.assert_close(bits_of(example, lambda done: None), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("which", ["text_run", "landmark_run"])
def test_the_text_is_all_there_and_no_mark_up(
    which: str, request: pytest.FixtureRequest, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spans = page_of(request.getfixturevalue(which), 0, capsys)
    shown = "".join(text for text, _, _ in spans.spans)
    written = {visible(file.read_text()) for file in texts.glob("*.txt")}
    assert any(shown == text or shown == text + visible("\n") for text in written)
    assert not {"b", "img"} & spans.tags
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    # all but the first are scored
    assert spans.spans[0][1] == "u"
    assert all("bits" in title for _, _, title in spans.spans[1:])


def test_symbols_that_are_asked_for_have_colours(flip_flop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spans = page_of(flip_flop, 0, capsys).spans
    for (before, _, _), (_, kind, _) in pairwise(spans):
        # what follows a read is scored, nothing else
        assert (kind != "u") == (before == " r")


def test_tokens_that_share_a_character_are_one() -> None:
    parts = [b"a", b"\xc3", b"\xa9", b"\xe2\x98", b"\x83b", b"\xf0"]
    units = list(units_of([Token(part, place, float(place)) for place, part in enumerate(parts)]))
    assert [unit.text for unit in units] == ["a", "é", "\N{SNOWMAN}b", "\N{REPLACEMENT CHARACTER}"]
    assert [len(unit.tokens) for unit in units] == [1, 2, 2, 1]
    assert units[1].bits == 1.5


def test_colours_rise_with_bits() -> None:
    assert [level_of(bits) for bits in (0, *BOUNDS)] == list(range(len(BOUNDS) + 1))
    assert level_of(float("inf")) == level_of(float("nan")) == len(BOUNDS)
