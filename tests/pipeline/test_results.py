"""What a run came to, for Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_run import make_run

from nanogpt_edit.pipeline.results import Results

CELL = ("sft", "problems", "pass_at_1")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(make_run(tmp_path_factory.mktemp("results") / "run"), status=0)


def test_the_ledger_is_rows_that_say_what_the_summary_says(results: Results) -> None:
    first = results.summary.ledger.rows[1].cells[0]
    assert first is not None
    (found,) = [row for row in results.ledger if (row["stage"], row["skill"], row["metric"]) == CELL]
    assert (found["value"], found["change"], found["verdict"]) == (first.value.value, first.delta, first.verdict)
    assert list(found) == ["stage", "skill", "metric", "value", "low", "high", "n", "change", "verdict"]


def test_every_measure_and_every_comparison_is_a_row(results: Results) -> None:
    stages = results.summary.stages
    assert len(results.evaluations) == sum(len(own) for skills in stages.values() for own in skills.values())
    named = {(row["stage"], row["before"], row["metric"]): row["delta"] for row in results.comparisons}
    assert named["grpo", "sft", "pass_at_1"] == results.run.comparisons["grpo-sft"].metrics["pass_at_1"].delta


def test_the_figures_are_those_of_the_report(results: Results) -> None:
    assert {"sft-loss", "grpo-accuracy", "edit-probability"} <= set(results.figures)
    assert "<svg" in results.figures["sft-loss"]._repr_html_()


def test_a_log_has_a_row_per_step_and_one_that_is_not_there_none(results: Results) -> None:
    steps = [row["step"] for row in results.log("sft")]
    assert steps == sorted(set(steps))
    assert "val_loss" in results.log("sft")[-1] or "loss" in results.log("sft")[-1]
    assert results.log("edited") == []


def test_a_run_is_printed_as_its_ledger_and_where_the_report_is(results: Results) -> None:
    printed = str(results)
    assert "GRPO" in printed and printed.endswith(f"The report: {Path(results.path) / 'report.html'}")
    assert "report.html" in results._repr_html_()
