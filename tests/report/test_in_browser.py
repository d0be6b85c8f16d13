"""The report as a browser shows it: nothing cut at any width, tokens told by pointer and keys, no script at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from needs_browser import browser, playwright
from report_run import make_run

from nanogpt_edit.pipeline.compare_runs import compare_runs
from nanogpt_edit.report import build
from nanogpt_edit.report.page import render_pair

pytestmark = pytest.mark.slow  # a browser is begun

PAGES = [("report.html", 1280), ("report.html", 768), ("report.html", 400), ("pair.html", 400)]
CUT = """() => [...document.querySelectorAll('body *')].filter(each => {
  const beyond = each.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
  const scrolls = each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).overflowX !== 'visible';
  return each.clientWidth && (beyond || scrolls);
}).map(each => `${each.tagName}.${each.className}`)"""
"""The elements that reach beyond the page, or of which a part is to be scrolled to."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs") / "tiny", problems=12, steps=12)
    build(run)
    (run / "pair.html").write_text(render_pair(compare_runs(run, run)), encoding="utf-8")
    return run


@pytest.mark.parametrize(("name", "width"), PAGES)
def test_nothing_is_cut_with_everything_unfolded(
    chromium: playwright.Browser, folder: Path, width: int, name: str
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto((folder / name).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CUT) == []
    assert said == []
    page.close()


def test_the_first_screen_holds_the_sentences_the_examples_and_the_first_verdicts(
    chromium: playwright.Browser, folder: Path
) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto((folder / "report.html").as_uri())
    for there in (".story dd:last-child", ".change-card", "#verdict h2", ".expectations tbody tr", "nav a"):
        box = page.locator(there).first.bounding_box()
        assert box and box["y"] + box["height"] < 900, there
    page.evaluate("window.scrollTo({top: 5000, behavior: 'instant'})")
    box = page.locator("nav").bounding_box()
    assert box and box["y"] == 0  # the contents stay in sight
    page.close()


def test_a_token_tells_its_numbers_to_the_pointer_and_to_the_keys(chromium: playwright.Browser, folder: Path) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto((folder / "report.html").as_uri())
    first = page.locator(".micro").first
    tokens = first.locator(".tok")

    def told(place: int) -> str:
        return str(tokens.nth(place).evaluate("each => getComputedStyle(each, '::after').content"))

    assert told(1) == "none"
    tokens.nth(1).hover()
    assert told(1).startswith('"p 0.') and "advantage +1.50" in told(1)
    page.mouse.move(0, 0)
    tokens.nth(0).locator("input").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert told(2).startswith('"p 0.') and told(1) == "none"
    colour = "each => getComputedStyle(each).backgroundColor"
    by_logprob = tokens.nth(2).evaluate(colour)
    page.locator("#lens-a").check()
    by_advantage = tokens.nth(2).evaluate(colour)
    page.locator("#lens-e").check()
    assert len({by_logprob, by_advantage, tokens.nth(2).evaluate(colour)}) == 3
    page.close()
