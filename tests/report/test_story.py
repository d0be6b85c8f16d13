"""The first screen of a report: what was changed and what it cost, in words and examples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from report_run import make_run

from nanogpt_edit.report.read import read_run
from nanogpt_edit.report.run import Run
from nanogpt_edit.report.story import changes, known_before, sentences
from nanogpt_edit.report.summary import summarise


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("runs") / "tiny"))


def part(run: Run, stages: Sequence[str]) -> Run:
    """What there would be of the run, had it made these stages only."""
    edited = "edited" in stages
    return replace(run, stages={name: run.stages[name] for name in stages}, edit=run.edit if edited else None)


def told(run: Run) -> dict[str, str]:
    return {each.head: each.text for each in sentences(run, summarise(run))}


def test_a_whole_run_is_told_in_five_sentences(whole: Run) -> None:
    story = told(whole)
    assert list(story) == ["Taught", "Gained", "Edited", "Cost", "Took"]
    assert story["Taught"] == "A model of 1.03 M parameters was pretrained, then taught to reason by SFT and GRPO."
    assert re.fullmatch(
        r"At the first try base solves 0\.0% of the problems, SFT \d\d\.\d% \(better\) and GRPO \d\d\.\d% \(\w+\)\.",
        story["Gained"],
    )
    assert story["Edited"].startswith(
        "Of 50 facts written at once by MEMIT, 48 have their new answer as the model's first choice, and 42 "
    )
    assert story["Cost"].startswith("SFT cost ") and "; the edit cost " in story["Cost"]
    assert story["Took"].startswith("5 min 0 s in all on ")
    assert story["Took"].endswith(", most of it for GRPO (1 min 59 s), base (1 min 28 s) and SFT (51.2 s).")


def test_what_was_known_before_the_edit_is_said(whole: Run) -> None:
    assert whole.edit is not None
    assert known_before(whole.edit) == (
        "Before, the model knew 40 of them (the true answer was its first choice) and did not know 10: 38 of the known "
        "and 10 of the unknown took the new answer."
    )


def test_a_part_of_a_run_is_told_without_the_rest(whole: Run) -> None:
    untaught = replace(whole, logs={}, seconds={})
    measured = told(part(untaught, ["base"]))
    assert measured == {"Taught": "A model of 1.03 M parameters was taught nothing: it was measured."}
    edited = told(part(untaught, ["base", "edited"]))
    assert list(edited) == ["Taught", "Edited", "Cost"]
    assert edited["Taught"].endswith("was taught nothing before its facts were edited.")
    assert edited["Edited"].startswith("Of 50 facts written at once")
    assert "SFT" not in " ".join(edited.values())
    assert list(told(part(untaught, ["base", "sft"]))) == ["Taught", "Gained", "Cost"]


def test_three_changes_are_shown_a_gain_an_edit_and_a_loss(whole: Run) -> None:
    gain, edit, loss = changes(whole)
    assert (gain.role, edit.role, loss.role) == ("good", "good", "bad")
    assert gain.before[0] == "SFT" and gain.after[0] == "GRPO"
    assert gain.after[1].rpartition(" → ")[2] != gain.before[1].rpartition(" → ")[2]
    assert edit.title == "A fact it knew, rewritten"
    assert loss.before[0] == "GRPO" and loss.after == ("edited", "Oslo")


def test_without_learning_a_failure_is_shown_beside_a_success(whole: Run) -> None:
    success, failure, _ = changes(part(whole, ["base", "edited"]))
    assert failure.title.startswith("A fact it knew, not rewritten")
    assert (success.role, failure.role) == ("good", "bad")
    assert success.before[0] == "base" and success.after[0] == "edited"
    assert changes(part(whole, ["base"])) == []


def test_an_answer_that_came_first_already_is_no_example(whole: Run) -> None:
    assert whole.edit is not None
    records = [replace(each, rank_before=1 if each.known else each.rank_before) for each in whole.edit.scores.records]
    scores = replace(whole.edit.scores, records=tuple(records))
    run = replace(part(whole, ["grpo", "edited"]), edit=replace(whole.edit, scores=scores))
    assert changes(run)[0].title == "A fact it did not know, rewritten"


def test_known_and_unknown_facts_stand_beside_all_in_the_summary(whole: Run) -> None:
    summary = summarise(whole).as_json()["edit"]
    assert isinstance(summary, dict)
    assert summary["known"]["success"]["n"] == 40 and summary["unknown"]["success"]["n"] == 10
    assert summary["known"]["success"]["value"] == pytest.approx(38 / 40)
    assert summary["unknown"]["success"]["value"] == 1.0


def test_a_record_of_an_earlier_version_says_nothing_of_what_was_known(whole: Run, tmp_path: Path) -> None:
    assert whole.edit is not None
    records = tuple(replace(each, true_rank_before=None) for each in whole.edit.scores.records)
    earlier = replace(whole, edit=replace(whole.edit, scores=replace(whole.edit.scores, records=records)))
    assert earlier.edit is not None and known_before(earlier.edit) == ""
    assert summarise(earlier).by_known == {}
    assert changes(part(earlier, ["grpo", "edited"]))[0].title == "A fact, rewritten"
