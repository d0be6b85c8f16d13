"""The playground in a browser: every part is used as a person uses it, and the console stays empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from edit_world import facts
from needs_browser import browser, playwright
from playground_run import served_run
from serving_run import Served

from nanogpt_edit.data.fact_files import fact_to_record

pytestmark = pytest.mark.slow  # a browser is begun

FACT = facts(1)[0]
SETTINGS = "&n=2&temperature=0.5&top_p=0.9&top_k=7&max_tokens=12&seed=5&model=small"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_run(tmp_path_factory.mktemp("run")) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(here: Served, chromium: playwright.Browser) -> Iterator[playwright.Page]:
    """One page for all tests; whatever its console says is an error."""
    page, said = chromium.new_page(), list[str]()
    page.set_default_timeout(60_000)
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    open_page(page, here, "")
    yield page
    assert said == []


def open_page(page: playwright.Page, here: Served, address: str) -> None:
    page.goto("about:blank")
    page.goto(f"http://127.0.0.1:{here.port}/{address}")
    page.wait_for_selector("html[data-ready]", state="attached")


def test_ask_writes_samples_whose_tokens_can_be_branched_from(page: playwright.Page, here: Served) -> None:
    open_page(page, here, f"#ask?prompt={FACT.prompt.replace(' ', '+')}{SETTINGS}")
    assert page.input_value("#ask [name=prompt]") == FACT.prompt and page.input_value("#ask [name=top_k]") == "7"
    page.click("#ask button.first")
    page.wait_for_selector("#ask .sample:nth-of-type(2) > .quiet:has-text('tokens')")
    assert page.locator("#ask .sample").count() == 2
    page.click("#ask .tokens span >> nth=0")
    alternatives = page.locator("#ask .alternatives li")
    assert alternatives.count() >= 10
    word = alternatives.locator(".word").nth(2).text_content()
    alternatives.nth(2).locator("button").click()
    page.wait_for_selector(
        "#ask .sample:has-text('branch at token 1') > .quiet:has-text('ended by itself'), "
        "#ask .sample:has-text('branch at token 1') > .quiet:has-text('cut at')"
    )
    chosen = page.locator("#ask .chosen")
    assert chosen.count() == 1 and (chosen.get_attribute("aria-label") or "").startswith(word or "?")


def test_tokens_are_walked_by_keyboard(page: playwright.Page) -> None:
    page.click("#ask .tokens span >> nth=0")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("#ask .tokens span[aria-pressed=true]").count() == 1
    assert page.evaluate("document.activeElement.getAttribute('role')") == "button"
    page.keyboard.press("Escape")
    page.focus("#tab-ask")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tab-edit", "aria-selected") == "true" and page.is_visible("#edit")


def test_an_edit_is_made_turned_and_undone(page: playwright.Page, here: Served, chromium: playwright.Browser) -> None:
    page.click("#tab-edit")
    for name, value in (("prompt", FACT.prompt), ("subject", ""), ("target_new", FACT.target_new), ("target_true", "")):
        page.fill(f"#edit [name={name}]", value)
    page.fill("#edit [name=subject]", FACT.subject)
    page.wait_for_selector(f"#found mark:text-is('{FACT.subject}')")
    page.click("#edit button.first")
    page.wait_for_selector("#edit .edition .said.now")
    assert page.text_content("#edit .said.before b") == FACT.target_true
    assert page.text_content("#edit .said.now b") == FACT.target_new
    page.wait_for_selector("#edit .elsewhere:has-text('nats per token')")
    another = chromium.new_page()  # it shows the edits that there are
    open_page(another, here, "#edit")
    another.wait_for_selector("#edit .elsewhere:has-text('nats per token')")
    assert another.text_content("#edit .said.now b") == FACT.target_new
    another.close()
    page.fill("#edit .dial input", "0")
    page.wait_for_selector(f"#edit .said.now b:text-is('{FACT.target_true}')")
    assert "small+edit-1" in (page.text_content("#edit [name=model]") or "")
    page.click("#edit .edition button:text-is('Undo')")
    page.wait_for_selector("#edit .edition", state="detached")
    assert here.shelf.names() == ["small"]
    assert "bit for bit" in (page.text_content("#said") or "")


def test_a_fact_of_an_edit_is_switched_off_and_the_other_stays(here: Served, chromium: playwright.Browser) -> None:
    both, page = facts(2), chromium.new_page()
    here.ask("POST", "/api/edits", {"model": "small", "facts": [fact_to_record(fact) for fact in both]})
    open_page(page, here, "#edit")
    first, second = (page.locator(f"#edit details.fact:has-text('{fact.subject}')") for fact in both)
    first.locator("[role=switch]").click()
    first.locator(f".said.now b:text-is('{both[0].target_true}')").wait_for()
    assert second.locator(".said.now b").text_content() == both[1].target_new
    first.locator("[role=switch]").click()
    first.locator(f".said.now b:text-is('{both[0].target_new}')").wait_for()
    page.click("#edit button:text-is('Undo all edits')")
    page.wait_for_selector("#edit :text('1 edit is undone; the weights are bit for bit what they were.')")
    page.close()


def test_a_trace_tells_the_numbers_of_its_cells(page: playwright.Page) -> None:
    page.click("#tab-trace")
    for name, value in (
        ("prompt", FACT.prompt),
        ("subject", FACT.subject),
        ("answer", FACT.target_true),
        ("draws", "2"),
    ):
        page.fill(f"#trace [name={name}]", value)
    page.click("#trace button.first")
    page.wait_for_selector("#trace .map.wide")
    assert page.locator("#trace .map").count() == 4
    page.hover("#trace .map .cell >> nth=0")
    assert "brings back" in (page.text_content("#trace .map .readout") or "")


def test_the_run_is_shown_and_the_whole_page_can_be_saved(
    page: playwright.Page, here: Served, chromium: playwright.Browser, tmp_path: Path
) -> None:
    page.click("#tab-run")
    page.wait_for_selector("#run .ledger tbody tr")
    assert page.locator("#run .stage").count() == 4 and page.locator("#run .plot").count() > 3
    page.select_option("#run [name=colour]", "entropy")
    assert page.locator("#run [data-colour=entropy] .scope span").count() > 10
    file = tmp_path / "saved.html"
    file.write_text(page.evaluate("document.getElementById('save-page').asFile()"), encoding="utf-8")
    alone = chromium.new_page()
    alone.goto(file.as_uri())
    assert alone.locator("script, link[rel=stylesheet], button").count() == 0
    assert alone.locator(".tokens span").count() > 10 and alone.is_visible(".map") and alone.is_visible(".ledger")
    assert alone.input_value("#ask [name=prompt]") == FACT.prompt
    alone.close()


def test_a_phone_sees_no_part_cut_off(page: playwright.Page) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    for name in ("ask", "edit", "trace", "run"):
        page.click(f"#tab-{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
        assert page.locator("h1").count() == 1
    page.set_viewport_size({"width": 1280, "height": 800})


@pytest.mark.parametrize(
    ("scheme", "width"),
    [("light", 1280), ("dark", 390), ("light", 390), ("dark", 1280)],
)
def test_axe_finds_no_serious_fault_in_any_part(page: playwright.Page, scheme: str, width: int) -> None:
    """With what the tests before have left in the parts: answers, a trace, a run; and with an edit on its own page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    for name in ("ask", "edit", "trace", "run"):
        page.click(f"#tab-{name}")
        assert serious_faults(axe.Axe().run(page).response) == [], name


def serious_faults(found: dict[str, list[dict[str, object]]]) -> list[str]:
    """What axe calls serious or critical, and where."""
    return [
        f"{fault['id']}: {node['target']} {node['failureSummary']}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
