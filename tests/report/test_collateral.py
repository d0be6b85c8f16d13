"""What a step did beside what it was for: problems turned, facts moved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_run import make_run

from nanogpt_edit.evaluation.records import EvalRecord, Evaluation, Recall
from nanogpt_edit.report.collateral import moved_facts, turned
from nanogpt_edit.report.cost import costs
from nanogpt_edit.report.read import read_run
from nanogpt_edit.report.run import Run, Series


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("runs") / "tiny", problems=12, steps=12))


def completion(problem: str, sample: int, *, correct: bool, skill: str = "problems") -> EvalRecord:
    text = f"<answer>{problem}</answer>" if correct else "<answer>no</answer>"
    return EvalRecord(skill, problem, sample, f"Q {problem}", problem, text, None, None, correct, True, 1, 1, "stop")


def checkpoint(stage: str, answers: dict[str, str], *, skill: str = "problems") -> Evaluation:
    """`answers`: of each problem its samples, '+' right and '-' wrong."""
    records = [
        completion(problem, sample, correct=mark == "+", skill=skill)
        for problem, marks in answers.items()
        for sample, mark in enumerate(marks)
    ]
    return Evaluation(stage, "f", 1.0, {}, {}, tuple(records), (), ())


def only(run: Run, *stages: Evaluation) -> Run:
    return replace(run, stages={each.stage: each for each in stages}, edit=None)


def test_a_problem_turns_where_the_majority_of_its_samples_does(whole: Run) -> None:
    before = checkpoint("sft", {"a": "----", "b": "+---", "c": "++++", "d": "++--", "e": "++++", "f": "--++"})
    after = checkpoint("grpo", {"a": "+++-", "b": "++++", "c": "+---", "d": "++++", "e": "++++", "f": "--++"})
    wrong, right = turned(only(whole, before, after))
    assert right.title == "GRPO turned 2 of 6 problems right" and right.role == "good"
    assert [each.prompt for each in right.shown] == ["Q a", "Q b"]  # equally far: in the order of the file
    assert wrong.title == "GRPO turned 1 of 6 problems wrong" and wrong.role == "bad"
    (example,) = wrong.shown
    assert [(side.stage, side.right, side.samples) for side in example.sides] == [("sft", 4, 4), ("grpo", 1, 4)]
    assert [side.shown[0].correct for side in example.sides] == [True, False]  # typical of what it counts as


def test_both_checkpoints_count_on_as_many_samples(whole: Run) -> None:
    before, after = checkpoint("grpo", {"a": "++------", "b": "------++"}), checkpoint("edited", {"a": "--", "b": "++"})
    wrong, right = turned(only(whole, before, after))
    assert [each.prompt for each in wrong.shown] == ["Q a"]
    assert [each.prompt for each in right.shown] == ["Q b"]
    assert {side.samples for each in (*wrong.shown, *right.shown) for side in each.sides} == {2}


def test_without_problems_arithmetic_stands_in(whole: Run) -> None:
    sums = (checkpoint(stage, {"a": marks}, skill="arithmetic") for stage, marks in (("base", "+"), ("edited", "+")))
    assert [each.title for each in turned(only(whole, *sums))] == [
        "The edit turned none of 1 sums wrong",
        "The edit turned none of 1 sums right",
    ]
    assert turned(only(whole, checkpoint("base", {"a": "+"}))) == []


def recall(prompt: str, p: float, *, recalled: bool, group: str = "recall") -> Recall:
    return Recall(group, prompt, prompt, "Paris", "Paris" if recalled else "Lyon", 1, p, p, recalled)


def test_facts_moved_are_those_lost_first_and_then_the_furthest(whole: Run) -> None:
    before = [
        recall("kept", 0.9, recalled=True),
        recall("lost", 0.5, recalled=True),
        recall("same", 0.8, recalled=True),
    ]
    after = [
        recall("kept", 0.2, recalled=True),
        recall("lost", 0.4, recalled=False),
        recall("same", 0.8, recalled=True),
    ]
    edited = [recall("edited", p, recalled=p > 0.5, group="recall_edited") for p in (0.9, 0.1)]
    stages = [
        replace(checkpoint(name, {}), recalls=(*found, other))
        for name, found, other in (("grpo", before, edited[0]), ("edited", after, edited[1]))
    ]
    run = replace(only(whole, *stages), edit=whole.edit)
    assert run.edit is not None
    own = replace(run, edit=replace(run.edit, scores=replace(run.edit.scores, prompts=())))
    assert [(each.prompt, each.lost) for each in moved_facts(own)] == [("lost", True), ("kept", False)]
    assert {each.prompt for each in moved_facts(run)} > {"lost", "kept"}  # and the facts asked around the edit
    assert moved_facts(only(whole, *stages)) == []


def test_a_stage_costs_time_tokens_and_memory(whole: Run, tmp_path: Path) -> None:
    log = {"tokens_per_second": Series((0, 1), (100.0, 50.0)), "seconds": Series((0, 1), (2.0, 0.5))}
    run = replace(whole, logs={"sft": log}, seconds={"sft": 3.0, "trace": 1.0}, peak_bytes={"sft": 2**30})
    sft, trace = costs(run)
    assert (sft.seconds, sft.tokens, sft.peak_bytes) == (3.0, 225, 2**30)
    assert (trace.tokens, trace.peak_bytes) == (None, None)
