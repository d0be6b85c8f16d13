"""The ledger's verdicts and words, the examples it chooses, and the intervals it makes, on numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_edit.common.records import Place, to_value
from nanogpt_edit.common.stats import Difference, Interval, Verdict, paired_difference, share
from nanogpt_edit.editing.records import Edit, EditScores, FactScore
from nanogpt_edit.evaluation.records import Comparison, EvalRecord, Evaluation, Recall
from nanogpt_edit.report import labels
from nanogpt_edit.report.examples import edit_groups, lost_facts, problem_examples, prompt_examples
from nanogpt_edit.report.ledger import make_ledger
from nanogpt_edit.report.page import cell, fenced
from nanogpt_edit.report.plots import rolling_mean
from nanogpt_edit.report.run import Run


def stage(
    name: str,
    *,
    skills: dict[str, dict[str, Interval]] | None = None,
    completions: list[EvalRecord] | None = None,
    facts: list[Recall] | None = None,
) -> Evaluation:
    return Evaluation(name, "", 0.0, {}, skills or {}, tuple(completions or ()), tuple(facts or ()), ())


def run_of(*stages: Evaluation, comparisons: list[Comparison] | None = None, edit: Edit | None = None) -> Run:
    return Run(
        path=Path("runs/x"),
        recipe={},
        planned=("base", "sft", "grpo", "edited"),
        source=None,
        logs={},
        stages={one.stage: one for one in stages},
        comparisons={pair.name: pair for pair in comparisons or ()},
        edit=edit,
        trace=None,
        transcript=None,
        rollouts=(),
        told={},
        seconds={},
        peak_bytes={},
        environment={},
        notes=(),
    )


def interval(value: float) -> Interval:
    return Interval(value, value - 0.02, value + 0.02, 400)


def change(delta: float, low: float, high: float, verdict: Verdict) -> Difference:
    return Difference(delta, low, high, 0.01, 400, 0.03, verdict)


def completion(problem: str, sample: int, *, correct: bool, skill: str = "problems") -> EvalRecord:
    text = f"<think>{sample}</think><answer>{problem}</answer>"
    graded = (problem, problem, correct, True)
    return EvalRecord(skill, problem, sample, f"question {problem}", "1", text, *graded, 1, 1, "stop")


def answers(pattern: dict[str, str]) -> list[EvalRecord]:
    """{'a': '110'}: problem a, three samples, the first two right."""
    return [
        completion(problem, sample, correct=mark == "1")
        for problem, marks in pattern.items()
        for sample, mark in enumerate(marks)
    ]


def edited(**changes: object) -> FactScore:
    fact = {
        "id": "1", "relation": "capital", "prompt": "The capital of Egypt is", "subject": "Egypt",
        "target_true": "Cairo", "target_new": "Alexandria", "old_answer": "Cairo", "new_answer": "Alexandria",
        "p_first_before": 0.01, "p_first_after": 0.9, "rank_before": 7, "rank_after": 1, "p_target_before": 0.01,
        "p_target_after": 0.9, "success": True, "efficacy": True, "contains": True, "token_accuracy": 1.0,
        "paraphrase_success": 1.0, "paraphrase_rank1": 1.0, "neighbourhood_before": 1.0, "neighbourhood_after": 1.0,
        "neighbourhood_rank1_before": 1.0, "neighbourhood_rank1_after": 1.0, "entropy_before": None,
        "entropy_after": None, "subject_lookup": "exact", "reason": "",
    }  # fmt: skip
    return to_value(FactScore, {**fact, **changes}, "fact", Place("a test"))


def scores_of(facts: Sequence[FactScore]) -> EditScores:
    """As the facts give them, where the ledger looks; elsewhere anything."""
    before, after = ([getattr(fact, f"neighbourhood_{when}") for fact in facts] for when in ("before", "after"))
    means = dict.fromkeys((each.name for each in fields(EditScores)), share([1.0] * len(facts)))
    means |= {"neighbourhood_before": share(before), "neighbourhood_after": share(after)}
    return EditScores(**{**means, "records": tuple(facts)})


@pytest.mark.parametrize("verdict", ["better", "worse", "changed", "inconclusive"])
def test_the_ledger_says_the_verdict_that_the_comparison_wrote(verdict: Verdict) -> None:
    skills = {"perplexity": {"nats_per_token": interval(0.9)}}
    tested = Comparison("grpo", "sft", {"perplexity_nats_per_token": change(0.1, -9, 9, verdict)})
    row = make_ledger(run_of(stage("sft", skills=skills), stage("grpo", skills=skills), comparisons=[tested])).rows[1]
    assert row.cells[0] is not None
    assert row.cells[0].verdict == verdict


@pytest.mark.parametrize(("formed", "column"), [(0.0, "flexible_pass_at_1"), (0.5, "pass_at_1")])
def test_where_no_answer_is_well_formed_the_last_number_counts(formed: float, column: str) -> None:
    solved = {"pass_at_1": interval(0.0), "flexible_pass_at_1": interval(0.4), "well_formed": interval(0.0)}
    taught = solved | {"well_formed": interval(formed)}
    ledger = make_ledger(
        run_of(stage("base", skills={"arithmetic": solved}), stage("edited", skills={"arithmetic": taught}))
    )
    assert ledger.columns == (("arithmetic", column),)


def test_a_step_is_told_in_plain_words() -> None:
    before = stage(
        "sft", skills={"problems": {"pass_at_1": interval(0.629)}, "perplexity": {"nats_per_token": interval(0.9)}}
    )
    after = stage(
        "grpo", skills={"problems": {"pass_at_1": interval(0.678)}, "perplexity": {"nats_per_token": interval(0.92)}}
    )
    tested = Comparison(
        "grpo",
        "sft",
        {
            "pass_at_1": change(0.049, 0.03, 0.07, "better"),
            "perplexity_nats_per_token": change(0.02, 0.01, 0.03, "worse"),
        },
    )
    rows = make_ledger(run_of(before, after, comparisons=[tested])).rows
    assert rows[0].outcome == ""
    assert rows[1].step == "GRPO"
    assert rows[1].outcome == (
        "gained 4.9 points of problems pass@1 (62.9% → 67.8%). "
        "It cost 0.020 nats per token on held-out text (0.900 → 0.920)."
    )


def test_a_skill_without_a_comparison_is_called_untested() -> None:
    before = stage("sft", skills={"problems": {"pass_at_1": interval(0.5)}}, completions=answers({"a": "10"}))
    after = stage("grpo", skills={"problems": {"pass_at_1": interval(0.75)}}, completions=answers({"a": "11"}))
    (cell,) = make_ledger(run_of(before, after)).rows[1].cells
    assert cell is not None
    assert (cell.verdict, cell.change, cell.delta) == ("untested", None, 0.25)


@pytest.mark.parametrize(("old", "new", "samples"), [(4, 4, None), (4, 2, 2), (2, 4, 2), (16, 4, 4)])
def test_the_ledger_says_how_many_samples_a_pair_had_where_a_row_had_more(
    old: int, new: int, samples: int | None
) -> None:
    skills = {"problems": {"pass_at_1": interval(0.449)}}
    rows = [
        stage(name, skills=skills, completions=answers({"a": "1" * n, "b": "0" * n}))
        for name, n in (("grpo", old), ("edited", new))
    ]
    tested = Comparison("edited", "grpo", {"pass_at_1": change(-0.046, -0.06, -0.03, "worse")})
    row = make_ledger(run_of(*rows, comparisons=[tested])).rows[1]
    assert row.cells[0] is not None
    assert row.cells[0].samples == samples
    assert ("the pair on" in row.outcome) == (samples is not None)


def test_the_edit_is_weighed_by_what_was_written_of_it() -> None:
    facts = [edited(id=str(n), neighbourhood_after=0.5 if n < 2 else 1.0) for n in range(10)]
    edit = Edit("x", "memit", (0,), 1.0, {}, scores_of(facts))
    none, every = {"facts": {"edited": share([0.0] * 10)}}, {"facts": {"edited": share([1.0] * 10)}}
    tested = paired_difference([0.0] * 10, [1.0] * 10)
    ledger = make_ledger(
        run_of(
            stage("sft", skills=none),
            stage("grpo", skills=none),
            stage("edited", skills=every),
            comparisons=[Comparison("edited", "grpo", {"facts_edited": tested})],
            edit=edit,
        )
    )
    assert ledger.columns[-2:] == (("facts", "edited"), ("edit", "neighbourhood"))
    assert [cell is None for row in ledger.rows for cell in row.cells[-2:]] == [True, True, False, False, False, False]
    written, neighbours = ledger.rows[2].cells[-2:]
    assert written is not None
    assert neighbours is not None
    assert (written.earlier, written.value.value, written.verdict) == (0.0, 1.0, "better")
    assert (neighbours.earlier, neighbours.value) == (1.0, share([0.5] * 2 + [1.0] * 8))
    assert neighbours.delta == pytest.approx(-0.1)
    assert neighbours.verdict == "inconclusive", "two facts of ten prove nothing"


def test_problems_are_chosen_by_their_gain() -> None:
    before = stage(
        "sft", completions=answers({"same": "1111", "gain": "0001", "more": "0000", "loss": "1110", "none": "0000"})
    )
    after = stage(
        "grpo", completions=answers({"same": "1111", "gain": "0011", "more": "1110", "loss": "1000", "none": "0000"})
    )
    chosen = [(example.kind, example.prompt.split()[1]) for example in problem_examples(run_of(before, after))]
    assert chosen == [
        ("GRPO gained most", "more"),
        ("GRPO gained most", "gain"),
        ("GRPO lost most", "loss"),
        ("Solved by neither", "none"),
        ("Solved by both", "same"),
    ]
    more = problem_examples(run_of(before, after))[0]
    assert [(side.stage, side.right, side.samples) for side in more.sides] == [("sft", 0, 4), ("grpo", 3, 4)]
    assert [[one.correct for one in side.shown] for side in more.sides] == [[False], [True, False]]


def test_one_checkpoint_alone_has_examples_too() -> None:
    only = stage("sft", completions=answers({"a": "11", "b": "10", "c": "00"}))
    assert [one.kind for one in problem_examples(run_of(only))] == ["Always right", "Sometimes right", "Never right"]
    assert problem_examples(run_of()) == []
    assert prompt_examples(run_of(only), "probes", limit=3) == []


def test_a_lost_fact_is_one_the_first_checkpoint_knew() -> None:
    def fact(prompt: str, *, recalled: bool, group: str = "recall") -> Recall:
        return Recall(group, prompt, prompt, "Cairo", "Cairo" if recalled else "Oslo", 1, 0.5, 0.5, recalled)

    base = stage("base", facts=[fact("a", recalled=True), fact("b", recalled=False), fact("c", recalled=True)])
    later = stage("edited", facts=[fact("a", recalled=False), fact("b", recalled=False), fact("c", recalled=True)])
    rewritten = fact("d", recalled=True, group="recall_edited")
    names, lost = lost_facts(run_of(stage("base", facts=[*base.recalls, rewritten]), later))
    assert names == ("edited",)
    assert [(one.prompt, one.answers) for one in lost] == [("a", (("Oslo", False),))]


def test_edits_are_grouped_with_failures_first() -> None:
    facts = [
        edited(id="clean"),
        edited(id="costly", neighbourhood_after=0.5),
        edited(id="half", contains=False, new_answer="Alexander"),
        edited(id="longer", contains=True, exact=False, new_answer="Athensis"),
        edited(id="lost", success=False, reason="no value found: p 0.2; rank 90 to 3"),
        edited(id="kept", success=False, reason="value found (p 0.9), but not taken up"),
        edited(id="lost too", success=False, reason="no value found: p 0.1"),
        edited(id="no neighbours", neighbourhood_before=None, neighbourhood_after=None, paraphrase_success=None),
    ]
    groups = [(group.title, [fact.id for fact in group.facts]) for group in edit_groups(facts)]
    assert groups == [
        ("Failed: no value found", ["lost", "lost too"]),
        ("Failed: value found", ["kept"]),
        ("The new answer's first token is first, but what is written is not exactly it", ["half", "longer"]),
        ("Rewritten, but a paraphrase or a neighbour is wrong", ["costly"]),
        ("Rewritten, paraphrases and neighbours right", ["clean", "no neighbours"]),
    ]


def test_a_running_mean_by_hand() -> None:
    assert rolling_mean(numpy.array([1.0, 2.0, 6.0, 3.0]), window=1).tolist() == [1.5, 3.0, 11 / 3, 4.5]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (labels.percent(0.6784), "67.8%"),
        (labels.percent(1.0), "100%"),
        (labels.percent(0.9999), "100.0%"),
        (labels.number(12345.6), "12,346"),
        (labels.number(0.0123456), "0.0123"),
        (labels.number(-0.5), "−0.500"),
        (labels.number(0.00000213), "2·10⁻⁶"),
        (labels.number(math.nan), "–"),
        (labels.signed("pass_at_1", 0.0494), "+4.9"),
        (labels.signed("pass_at_1", -0.0004), "0.0"),
        (labels.signed("nats_per_token", -0.0213), "−0.021"),
        (labels.probability(0.895), "0.895"),
        (labels.probability(0.00002), "2·10⁻⁵"),
        (labels.p_value(0.0001), "<0.001"),
        (labels.duration(75.3), "1 min 15 s"),
        (labels.duration(59.97), "1 min 0 s"),
        (labels.duration(8.24), "8.2 s"),
        (labels.duration(3700), "1 h 1 min"),
        (labels.metric_label("majority_at_16"), "majority@16"),
        (labels.change_label("facts_recall_edited"), "true answers to the edited facts"),
        (labels.change_label("arithmetic_pass_at_1"), "arithmetic pass@1"),
        (labels.path_label("comparisons.grpo-sft.pass_at_1"), "GRPO minus SFT, problems pass@1"),
        (labels.listing(["a", "b", "c"]), "a, b and c"),
        (labels.listing([]), ""),
    ],
)
def test_numbers_and_names_as_people_read_them(shown: str, text: str) -> None:
    assert shown == text


@given(st.text())
@settings(max_examples=200)
def test_markdown_text_stays_in_its_cell(text: str) -> None:
    shown = cell(text)
    assert "\n" not in shown
    assert "<" not in shown
    assert not any(shown[place] == "|" and shown[place - 1] != "\\" for place in range(len(shown)))


@given(st.text(alphabet="`\n ab"))
def test_a_fence_is_longer_than_what_it_holds(text: str) -> None:
    first, *inside, last = fenced(text).split("\n")
    assert first == last + "text"
    assert not any(line.strip().startswith(last) for line in inside)
