"""The first screen of a report: what was changed and what it cost, in words and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from report_run import make_run

from nanogpt_edit.report.ledger import make_ledger
from nanogpt_edit.report.read import read_run
from nanogpt_edit.report.run import Run
from nanogpt_edit.report.story import changes, sentences
from nanogpt_edit.report.summary import summarise


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("runs") / "tiny"))


def part(run: Run, stages: Sequence[str]) -> Run:
    """What there would be of the run, had it made these stages only."""
    edited = "edited" in stages
    return replace(run, stages={name: run.stages[name] for name in stages}, edit=run.edit if edited else None)


def told(run: Run) -> str:
    return " ".join(sentences(run, make_ledger(run)))


def test_a_whole_run_is_told_in_five_sentences(whole: Run) -> None:
    story = sentences(whole, make_ledger(whole))
    assert len(story) == 5
    solved, learning, edit, known, cost = story
    assert solved.startswith("Problems solved at the first try: base 0.0%, SFT ")
    assert "GRPO" in solved and "edited" not in solved
    assert learning.startswith("SFT cost ")
    assert edit.startswith("Of 50 facts written at once, 48 have their new answer as the model's first choice, and 42 ")
    assert known == (
        "Before, the model knew 40 of them (the true answer was its first choice) and did not know 10: 38 of the known "
        "and 10 of the unknown took the new answer."
    )
    assert cost.startswith("The edit cost ")


def test_a_part_of_a_run_is_told_without_the_rest(whole: Run) -> None:
    assert told(part(whole, ["base"])) == "Nothing was changed: this run measures one model."
    edited = told(part(whole, ["grpo", "edited"]))
    assert edited.startswith("Of 50 facts written at once")
    assert "SFT" not in edited and "solved at the first try" not in edited
    assert "facts written" not in told(part(whole, ["base", "sft"]))
    assert told(part(whole, [])) == ""


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
    assert "the model knew" not in told(earlier)
    assert summarise(earlier).by_known == {}
    assert changes(part(earlier, ["grpo", "edited"]))[0].title == "A fact, rewritten"
