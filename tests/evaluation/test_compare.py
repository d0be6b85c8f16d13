"""Two evaluations in pairs, by hand."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from evaluate_stand_ins import all_graded, graded, recalled

from nanogpt_edit.commands.show import show_differences
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import write_json, write_jsonl
from nanogpt_edit.common.stats import paired_difference
from nanogpt_edit.evaluation.compare import (
    compare_evaluations,
    compare_nats,
    compare_probes,
    compare_recalls,
    compare_records,
    good_side,
)
from nanogpt_edit.evaluation.metrics import score_problems
from nanogpt_edit.evaluation.records import EvalRecord, write_records
from nanogpt_edit.report.read import read_run


def test_differences_on_the_same_problems_by_hand() -> None:
    before = all_graded(["6", "6"], ["5", "6"], ["6", None])
    after = all_graded(["5", "6"], ["5", "5"], ["6", "5"])
    found = compare_records(before, after)
    assert found["pass_at_1"].delta == pytest.approx(0.5)
    assert found["pass_at_1"].n == 3
    assert found["pass_at_1"].p_value == 0.25  # three gains: one of the four sign patterns up to a flip
    assert found["well_formed"].delta == pytest.approx(1 / 6)
    assert not any(name.startswith("arithmetic") for name in found)


def test_shorter_thinking_is_a_change_and_no_merit(capsys: pytest.CaptureFixture[str]) -> None:
    before = all_graded(*[["5"]] * 8, thinking_tokens=9)
    after = all_graded(*[["5"]] * 8, thinking_tokens=7)
    found = compare_records(before, after)["thinking_tokens"]
    assert (found.delta, found.verdict) == (-2, "changed")
    show_differences({"thinking_tokens": found, "the_other_way": replace(found, delta=2.0)})
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == ["less", "more"]


@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_terminal_takes_more_lines_and_cuts_nothing(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"COLUMNS": str(columns), "FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    found = paired_difference([0.125, 0.25, 0.5], [0.5, 0.75, 0.875])
    show_differences({"perplexity_nats_per_token": found})
    printed = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines())) <= columns
    assert "…" not in printed
    assert columns < 80 or f"{found.low:+.4g}" in printed


@pytest.mark.parametrize("rises", [True, False])
def test_the_ledger_reads_the_verdict_of_every_difference(rises: bool, tmp_path: Path) -> None:
    names = [*score_problems(all_graded(["5", "6"]), ks=(1, 2)).values, "arithmetic_pass_at_1"]
    names += ["facts_recall", "facts_recall_edited", "facts_edited", "probes_non_arithmetic"]
    names += ["perplexity_nats_per_token"]
    low, high = [0.1 + i / 100 for i in range(20)], [0.5 + i / 90 for i in range(20)]
    found = {name: paired_difference(*((low, high) if rises else (high, low)), good=good_side(name)) for name in names}
    written = {"metrics": {name: asdict(difference) for name, difference in found.items()}}
    (tmp_path / "eval").mkdir()
    (tmp_path / "recipe.toml").touch()
    write_json(tmp_path / "eval" / "compare_grpo-sft.json", written)
    assert dict(read_run(tmp_path).comparisons["grpo-sft"].metrics) == found
    assert {found[name].verdict for name in ("truncated", "perplexity_nats_per_token")} == {
        "worse" if rises else "better"
    }
    assert found["facts_recall_edited"].verdict == "changed"


def test_with_different_numbers_of_samples_the_first_ones_count() -> None:
    before = all_graded(["6", "6", "5", "5"], ["6", "6", "5", "5"])
    after = all_graded(["6", "5"], ["6", "5"])
    assert compare_records(before, after)["pass_at_1"].delta == 0.5  # 0 of 2 and 1 of 2
    assert compare_records(after, before)["pass_at_1"].delta == -0.5
    assert compare_records(before, before)["pass_at_1"].delta == 0


def test_arithmetic_is_compared_by_its_first_answers() -> None:
    before = all_graded(["6"], ["6"]) + all_graded(["6"], ["5"], skill="arithmetic")
    after = all_graded(["6"], ["6"]) + all_graded(["5"], ["5"], skill="arithmetic")
    found = compare_records(before, after)
    assert found["arithmetic_pass_at_1"].delta == 0.5
    assert found["pass_at_1"].delta == 0
    assert found["arithmetic_flexible_pass_at_1"].delta == 0.5
    arithmetic = {"arithmetic_pass_at_1", "arithmetic_flexible_pass_at_1"}
    assert {name for name in found if name.startswith("arithmetic")} == arithmetic
    # … and left out where one side has none
    assert "arithmetic_pass_at_1" not in compare_records(all_graded(["6"], ["6"]), after)


def test_different_problems_cannot_be_compared() -> None:
    before, after = all_graded(["5"], ["6"]), [graded(0, 0, "5"), graded(7, 0, "5")]
    with pytest.raises(UserError, match="used different problems; evaluate both with the same settings"):
        compare_records(before, after)


def test_majorities_are_compared_by_mcnemars_test() -> None:
    # Of 10 majorities of 4, 6 turn right and none wrong: 2 · (1/2)^6.
    wrong, right = ["6", "6", "6", "5"], ["5", "5", "5", "6"]
    found = compare_records(all_graded(*[wrong] * 10), all_graded(*[right] * 6, *[wrong] * 4))["majority_at_4"]
    assert (found.delta, found.p_value, found.verdict) == (0.6, 2 / 64, "better")
    # Eight majorities that are only tied afterwards have not turned right: the verdict follows the test.
    tied = ["5", "5", "6", "6"]
    found = compare_records(all_graded(*[wrong] * 8), all_graded(*[tied] * 8))["majority_at_4"]
    assert (found.delta, found.p_value, found.verdict) == (0.5, 1.0, "inconclusive")


def test_recalls_are_compared_subject_by_subject() -> None:
    before = [r for name in "abcdefgh" for r in recalled("recall", name, True, True)]
    after = [r for name in "abcdefgh" for r in recalled("recall", name, True, False)]
    found = compare_recalls(before, after + recalled("edited", "z", True))
    assert list(found) == ["facts_recall"]
    assert (found["facts_recall"].delta, found["facts_recall"].n) == (-0.5, 8)
    assert found["facts_recall"].verdict == "worse"
    # Other subjects, though as many, are no pairs.
    others = [replace(r, subject=r.subject.upper()) for r in after]
    assert compare_recalls(before, others) == {}


def test_probes_are_compared_prompt_by_prompt() -> None:
    def answers(*kinds: str) -> list[EvalRecord]:
        return [graded(i, 0, None, text=text, skill="probes") for i, text in enumerate(kinds)]

    before = answers("the sea", "blue", "a haiku", "dogs", "in Paris", "one day", "the moon", "by bus")
    after = answers("the sea", "1 + 1", "2 * 2", "3 = 3", "4 + 4", "5 + 5", "6 + 6", "7 + 7")
    found = compare_probes(before, after)["probes_non_arithmetic"]
    assert (found.delta, found.n, found.verdict) == (-7 / 8, 8, "worse")
    assert compare_probes(before, after[:1]) == {}  # one prompt in common has no interval


def test_nats_are_compared_block_by_block_and_fewer_are_better() -> None:
    before, after = [1.0 + i / 8 for i in range(8)], [0.5 + i / 8 for i in range(8)]
    found = compare_nats(before, after)["perplexity_nats_per_token"]
    assert (found.delta, found.n, found.verdict) == (-0.5, 8, "better")
    assert compare_nats(before, after[1:]) == {}


def test_what_both_evaluations_kept_is_compared(tmp_path: Path) -> None:
    for stage, answer, hit, nats in (("sft", "6", True, 1.0), ("grpo", "5", False, 2.0)):
        write_records(tmp_path / f"{stage}.jsonl", all_graded([answer], [answer]))
        recalls = [*recalled("recall", "Egypt", hit), *recalled("recall", "Peru", True)]
        write_jsonl(tmp_path / f"{stage}_facts.jsonl", [asdict(each) for each in recalls])
        write_jsonl(tmp_path / f"{stage}_text.jsonl", [{"nats_per_token": nats}] * 3)
    found = compare_evaluations(tmp_path / "sft.jsonl", tmp_path / "grpo.jsonl")
    deltas = {name: found[name].delta for name in ("pass_at_1", "facts_recall", "perplexity_nats_per_token")}
    assert deltas == {"pass_at_1": 1.0, "facts_recall": -0.5, "perplexity_nats_per_token": 1.0}
    (tmp_path / "sft_text.jsonl").unlink()
    found = compare_evaluations(tmp_path / "sft.jsonl", tmp_path / "grpo.jsonl")
    assert "facts_recall" in found and "perplexity_nats_per_token" not in found
