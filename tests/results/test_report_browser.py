"""The page in a browser: filters, sorting, themes, widths, no errors. Skipped where there is no Chromium."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from lcbench.cli import main
from tests.results.synthetic import ROPE, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")

EVIL = '</script><img src=x onerror="window.broken=1">'
ALIBI = {"_target_": "lcbench.position.alibi.Alibi"}
HEADER = "step,seconds,tokens,tokens_per_second,learning_rate,loss,evaluation_error\n"


def maps(counts: bool) -> dict:
    """Two layers of one head that read three tokens, of two queries."""
    weights = {"weights": [[0.5, 0.5], [0.1, 0.1, 0.8]]}
    kinds = weights | ({"gates": [[1, 0], [1, 0, 1]], "positions": [[1, 0], [2, 1, 1]]} if counts else {})
    return {"step": 1, "set": "sparse", "example": 0, "tokens": ["w", EVIL, "r"], "queries": [1, 2]} | {
        "layers": [[kinds], [kinds]]
    }


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Three encodings with two learning rates and two seeds, a failed run, and another experiment."""
    place = tmp_path_factory.mktemp("report")
    levels = {"cope": 0.0, "rope": 0.2, "alibi": 0.4}
    for name, position in {"cope": None, "rope": ROPE, "alibi": ALIBI}.items():
        for lr in (0.001, 0.01):
            for seed in (0, 1):
                level = levels[name] + 0.01 * seed + 10 * lr
                errors = {f"{s}/{m}": level for s in ("sparse", "dense", "sparse_length_4x") for m in ("error",)}
                errors |= {"sparse/sequence_error": level + 0.1, "dense/sequence_error": level + 0.1}
                errors |= {"sparse/error/distance_1": level, "sparse/error/distance_2_3": level}
                changes = {} if position is None else {"position": position}
                run = write_run(
                    place / "outputs" / f"{name}-{lr}-{seed}", errors, seed=seed, optimizer__lr=lr, **changes
                )
                if lr == 0.01 and name != "alibi":
                    (run / "maps.json").write_text(json.dumps(maps(counts=name == "cope")))
                (run / "metrics.csv").write_text(HEADER + "".join(f"{i},1,1,1,1,{level},\n" for i in range(1, 99)))
    write_run(place / "outputs" / "failed", {}, status="failed", seed=7, record={"error": EVIL})
    write_run(place / "outputs" / "other", {"sparse/error": 0.3}, experiment=EVIL)
    assert main(["report", str(place / "outputs"), "--output", str(place / "report.html")]) == 0
    return place / "report.html"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser, page_file):
    """Opens the page; at the end, nothing may have gone wrong and nothing may have been asked of a network."""
    wrong: list[str] = []
    pages = []

    def open_one(width: int = 1280, scheme: str = "light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on(
            "console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith("file:") else wrong.append(request.url))
        page.goto(page_file.as_uri())
        pages.append(page)
        return drawn(page)

    yield open_one
    for page in pages:
        assert page.evaluate("window.broken") is None
        assert page.locator("img").count() == 0
        page.close()
    assert wrong == []


def drawn(page):
    page.wait_for_selector("html[data-ready]", state="attached", timeout=20_000)
    return page


def rows(page) -> list[str]:
    return [text.split("\n")[0] for text in page.locator("#summary tbody tr td:first-child").all_inner_texts()]


def chip(page, group: str, name: str):
    return page.locator(f'[data-filter="{group}"] button', has_text=name).first


def test_every_figure_is_drawn(open_page):
    page = open_page()
    for name in ("scores", "lengths", "groups", "keys", "curves", "costs", "maps"):
        marks = page.locator(f"#{name} .chart svg path").count()
        assert marks > 3, name
    assert page.locator("#scores figcaption").all_inner_texts() == ["sparse", "dense", "sparse_length_4x"]
    assert page.locator("#runs").inner_text().count(EVIL) == 1, "a failed run's error is text"


def test_filters_by_key_set_and_metric(open_page):
    page = open_page()
    assert rows(page) == ["alibi", "alibi", "cope", "cope", "rope", "rope"]
    seeds = page.locator("#scores .chart").first.locator("path[aria-label*='alibi'], [aria-roledescription='circle']")
    before = seeds.count()
    chip(page, "position", "alibi").click()
    drawn(page)
    assert rows(page) == ["cope", "cope", "rope", "rope"]
    assert 0 < seeds.count() < before
    chip(page, "optimizer.lr", "0.01").click()
    drawn(page)
    assert rows(page) == ["cope", "rope"]
    # one value is left of the key, but the figures of the others stay
    chip(page, "set", "dense").click()
    drawn(page)
    assert page.locator("#scores figcaption").all_inner_texts() == ["sparse", "sparse_length_4x"]
    assert "dense" not in page.locator("#summary thead").inner_text()
    page.locator("select[name=metric]").select_option("sequence_error")
    drawn(page)
    assert page.locator("#scores figcaption").all_inner_texts() == ["sparse"]
    assert "10.50 %" not in page.locator("#summary tbody").inner_text()
    assert "11.50 %" in page.locator("#summary tbody").inner_text()
    chip(page, "position", "alibi").click()
    drawn(page)
    assert rows(page) == ["alibi", "cope", "rope"]


def test_maps_of_another_run_and_query(open_page):
    page = open_page()
    captions, cells = page.locator("#maps figcaption"), page.locator("#maps .mark-rect path")
    assert captions.all_inner_texts() == ["weights", "gates", "positions"]
    assert cells.count() == 3 * 2 * 3
    page.locator("#maps select[name=query]").select_option("0")
    drawn(page)
    assert cells.count() == 3 * 2 * 2
    page.locator("#maps select[name=run]").select_option("1")
    drawn(page)
    assert captions.all_inner_texts() == ["weights"]
    assert cells.count() == 2 * 3, "another run begins with its last query"
    assert EVIL[:9] in page.locator("#maps select[name=query]").inner_text()
    for name in ("cope", "rope"):
        chip(page, "position", name).click()
    drawn(page)
    assert page.locator("#maps").is_hidden()


def test_nothing_left_is_no_error(open_page):
    page = open_page()
    for name in ("alibi", "cope", "rope"):
        chip(page, "position", name).click()
    drawn(page)
    assert rows(page) == []
    chip(page, "position", "rope").click()
    drawn(page)
    assert rows(page) == ["rope", "rope"]


def test_a_click_sorts_and_the_keyboard_does(open_page):
    page = open_page()
    header = page.locator("#summary th", has_text="sparse").first
    header.click()
    assert rows(page)[0] == "cope"
    page.locator("#summary th", has_text="sparse").first.press("Enter")
    assert rows(page)[0] == "alibi"


def test_another_experiment(open_page):
    page = open_page()
    page.locator("select[name=experiment]").select_option("1")
    drawn(page)
    assert len(rows(page)) == 1
    assert page.locator("#lengths").is_hidden()
    page.locator("select[name=experiment]").select_option("0")
    drawn(page)
    assert len(rows(page)) == 6


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_widths_and_themes(open_page, width, scheme):
    page = open_page(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) > 384) == (scheme == "light")
    # figures take the theme's colours without being drawn again
    ink = page.evaluate("getComputedStyle(document.querySelector('#scores svg text')).fill")
    assert (sum(map(int, ink[4:-1].split(","))) > 384) == (scheme == "dark")
    for chart in page.locator(".chart").all():
        box = chart.bounding_box()
        if box:
            assert box["x"] + box["width"] <= width


def test_printed_it_is_on_white_without_filters(open_page):
    page = open_page(1280, "dark")
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    ink = page.evaluate("getComputedStyle(document.querySelector('#scores svg text')).fill")
    assert sum(map(int, ink[4:-1].split(","))) < 384
