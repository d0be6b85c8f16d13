"""The records of a run in a notebook, in the report's words and numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_run import make_run

from nanogpt_edit.evaluation.records import Transcript
from nanogpt_edit.report import notebook, numbers
from nanogpt_edit.report.read import read_run
from nanogpt_edit.report.run import Run
from nanogpt_edit.report.summary import Summary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("notebook") / "run")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return read_run(folder)


@pytest.fixture(scope="module")
def summary(folder: Path) -> Summary:
    return numbers(folder)


def words(html: str | None) -> str:
    """What a reader sees."""
    assert html is not None
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_ledger_has_a_row_per_checkpoint_and_the_verdict_of_each_change(summary: Summary) -> None:
    shown = summary.ledger._repr_html_()
    assert shown is not None and shown.count("<tr>") == 1 + len(summary.ledger.rows)
    grpo = summary.ledger.rows[2].cells[0]
    assert grpo is not None and grpo.delta is not None
    assert f"{100 * grpo.value.value:.1f}%" in words(shown)
    assert f"+{100 * grpo.delta:.1f}" in words(shown)
    assert words(shown) in words(summary._repr_html_())


def test_a_run_is_judged_below_its_ledger(summary: Summary) -> None:
    said = words(summary._repr_html_())
    assert said.count("✓") == sum(each.verdict == "pass" for each in summary.expectations) > 0
    assert "seconds in all ≤ 360 s 5 min 0 s" in said


def test_an_evaluation_shows_every_metric(run: Run) -> None:
    found = run.stages["grpo"]
    shown = found._repr_html_()
    assert shown is not None
    assert shown.count("<tr>") == 1 + sum(len(metrics) for metrics in found.metrics.values())
    measured = found.metrics["problems"]["pass_at_1"]
    assert f"pass@1 {100 * measured.value:.1f}% [{100 * measured.low:.1f}" in words(shown)


def test_a_transcript_tells_thinking_from_the_answer_and_obeys_nothing(run: Run) -> None:
    assert run.transcript is not None
    hostile = replace(run.transcript, prompt=((1, "<img src=x onerror=alert(1)>"),), gold="<b>7</b>")
    shown = Transcript._repr_html_(hostile)
    assert shown is not None and "<img" not in shown and "<b>7" not in shown
    kinds = [kind for _, _, kind in hostile.completion]
    assert shown.count(notebook.KINDS["think"]) == kinds.count("think") + 1  # the line below is as quiet
    assert shown.count(notebook.KINDS["answer"]) == kinds.count("answer") > 0
