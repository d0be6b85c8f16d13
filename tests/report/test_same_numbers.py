"""A number that stands in several places is the same in all: first screen, ledger, tables, Markdown, terminal, JSON."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from report_run import make_run
from rich.console import Console

from nanogpt_edit.report import build, terminal_summary
from nanogpt_edit.report.labels import number, percent
from nanogpt_edit.report.read import read_run
from nanogpt_edit.report.story import sentences
from nanogpt_edit.report.summary import Summary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", problems=12, steps=12)


@pytest.fixture(scope="module")
def summary(folder: Path) -> Summary:
    return build(folder)


@pytest.fixture(scope="module")
def places(folder: Path, summary: Summary) -> dict[str, str]:
    """Every place where a reader meets the numbers, as plain text."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_summary(summary))
    page = (folder / "report.html").read_text(encoding="utf-8")
    ledger = re.search(r'<table class="ledger.*?</table>', page, re.DOTALL)
    measures = re.search(r'<table class="stack measures.*?</table>', page, re.DOTALL)
    scores = re.search(r'<section>\s*<h2 id="edits".*?</section>', page, re.DOTALL)
    assert ledger and measures and scores
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    return {
        "story": " ".join(f"{each.head}: {each.text}" for each in sentences(read_run(folder), summary)),
        "ledger": text_of(ledger[0]),
        "measures": text_of(measures[0]),
        "edits": text_of(scores[0]),
        "markdown's ledger": re.sub(r"[*\\]", "", markdown[markdown.index("\n| | problems pass@1") :]),
        "terminal": console.export_text(),
    }


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def row(text: str, first: str, last: str) -> str:
    """What stands between two words."""
    found = re.search(rf"(?s)(?:^|\s){re.escape(first)}\s(.*?)(?:\s{re.escape(last)}\s|$)", text)
    assert found, (first, text)
    return found[1]


@pytest.mark.parametrize(("stage", "following"), [("base", "SFT"), ("SFT", "GRPO"), ("GRPO", "edited")])
def test_problems_solved_at_the_first_try(places: dict[str, str], summary: Summary, stage: str, following: str) -> None:
    solved = percent(summary.stages[stage.lower()]["problems"]["pass_at_1"].value)
    told = re.search(rf"\b{stage} (?:solves )?([\d.]+%)", places["story"])
    assert told and told[1] == solved
    assert row(places["ledger"], stage, following).startswith(solved)
    assert row(places["terminal"], stage, following).split()[0] == solved
    assert solved in re.findall(r"[\d.]+%", row(places["measures"], "pass@1", "pass@4"))
    line = next(line for line in places["markdown's ledger"].splitlines() if line.startswith(f"| {stage} |"))
    assert line.split("|")[2].split()[0] == solved


def test_new_answers_at_rank_one_and_exactly_written(places: dict[str, str], summary: Summary, folder: Path) -> None:
    counted = re.search(r"Of (\d+) facts .*? (\d+) have .*? and (\d+) are exactly", places["story"])
    assert counted
    facts, first, exact = map(int, counted.groups())
    assert summary.edit is not None and summary.edit["n"] == facts
    at_rank_one, as_written = percent(first / facts), percent(exact / facts)
    assert f"new answer at rank 1 {at_rank_one}" in places["edits"]
    assert f"written freely: exactly the new answer {as_written}" in places["edits"]
    assert f"Edits: {at_rank_one} have their new answer at rank 1, {as_written} written" in places["terminal"]
    told = json.loads((folder / "summary.json").read_text())["edit"]
    assert (percent(told["success"]["value"]), percent(told["exact"]["value"])) == (at_rank_one, as_written)
    (judged,) = [each for each in summary.expectations if each.metric == "edit.success"]
    assert judged.value == told["success"]["value"]
    assert re.search(rf"new answer at rank 1 ≥ 96%, the value alone +{at_rank_one}", places["terminal"])
    on_paraphrases = re.search(r"on paraphrases the new answer comes first in ([\d.]+%)", places["story"])
    assert on_paraphrases and f"new answer at rank 1 on paraphrases after {on_paraphrases[1]}" in places["edits"]


def test_every_cost_on_the_first_screen_is_a_change_in_the_ledger(places: dict[str, str]) -> None:
    costs = re.findall(r"([\d.]+) (points|nats)[^(]*\(([^ ]+) → ([^ );]+)", places["story"])
    assert costs
    for size, _, before, after in costs:
        for place in ("ledger", "terminal"):
            assert all(value in places[place] for value in (before, after)), (place, before, after)
            assert re.search(rf"▼ [−+]{re.escape(size)}\b", places[place]), (place, size)


def test_held_out_text_is_measured_once(places: dict[str, str], summary: Summary) -> None:
    for skills in summary.stages.values():
        nats = number(skills["perplexity"]["nats_per_token"].value)
        assert all(nats in places[place] for place in ("ledger", "measures", "terminal"))
