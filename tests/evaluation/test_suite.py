"""The skills, measured on stand-ins whose every probability is chosen, and on random models by the simple path."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from evaluate_stand_ins import CERTAIN, all_graded, bigram, token, writes
from tiny_stages import PROBLEMS, tiny_model, tiny_tokenizer

from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_json
from nanogpt_edit.common.stats import share
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.evaluation.facts import Question
from nanogpt_edit.evaluation.probes import PROBES
from nanogpt_edit.evaluation.records import EvalRecord, Evaluation
from nanogpt_edit.evaluation.suite import Skills, evaluate, problem_metrics, solve
from nanogpt_edit.model.gpt import GPT

QUESTIONS = tuple(Problem(f"{n} + 3?", "", str(n + 3), f"test:{n}") for n in range(1, 6))
SAMPLING = Sampling(temperature=1.0, top_k=None, max_new_tokens=8)


# Solving problems


def test_completions_are_graded() -> None:
    model = bigram(writes("<think>", "+", "</think>", "<answer>", "7", "</answer>"))
    records = solve(Engine(model), QUESTIONS[3:], n=2, sampling=SAMPLING, skill="problems")
    assert [(r.problem_id, r.sample_index) for r in records] == [
        ("test:4", 0),
        ("test:4", 1),
        ("test:5", 0),
        ("test:5", 1),
    ]
    assert records[0] == EvalRecord(
        skill="problems",
        problem_id="test:4",
        sample_index=0,
        prompt="4 + 3?",
        gold="7",
        text="<think>+</think><answer>7</answer>",
        strict="7",
        flexible="7",
        correct=True,
        well_formed=True,
        thinking_tokens=1,
        answer_tokens=1,
        finish_reason="stop",
    )
    assert [r.correct for r in records] == [True, True, False, False]


def test_a_problem_is_put_as_the_form_says() -> None:
    model = bigram(writes("<think>", "</think>", "<answer>", "7", "</answer>", after="+"))
    (record,) = solve(Engine(model), QUESTIONS[3:4], n=1, sampling=SAMPLING, skill="problems", form="{} +")
    assert (record.prompt, record.strict) == ("4 + 3?", "7")
    with pytest.raises(UserError, match=r'asked_as is "Answer:"; it must hold \{\} once'):
        EvaluateConfig(asked_as="Answer:")


def test_an_end_of_text_stops_and_is_not_part_of_the_text() -> None:
    model = bigram(writes("7", "<|endoftext|>"))
    (record,) = solve(Engine(model), QUESTIONS[3:4], n=1, sampling=SAMPLING, skill="problems")
    assert (record.text, record.finish_reason) == ("7", "stop")
    assert (record.strict, record.flexible, record.correct, record.well_formed) == (None, "7", False, False)


def test_what_never_ends_is_cut() -> None:
    model = bigram(writes("<think>", "7") | {token("7"): {token("7"): CERTAIN}})
    (record,) = solve(Engine(model), QUESTIONS[3:4], n=1, sampling=SAMPLING, skill="problems")
    assert (record.text, record.finish_reason) == ("<think>" + "7" * 7, "length")
    assert record.thinking_tokens == 7


def test_a_problems_samples_do_not_depend_on_its_company() -> None:
    model, sampling = tiny_model(), Sampling(temperature=1.0, max_new_tokens=6)
    together = solve(Engine(model), PROBLEMS, n=3, sampling=sampling, skill="problems")
    expected = {(r.problem_id, r.sample_index): r.text for r in together}
    assert len(set(expected.values())) == len(expected) == 63
    for chosen, n, slots in ((PROBLEMS[::-1], 3, 5), (PROBLEMS[4:7], 2, 512), (PROBLEMS[9:10], 1, 1)):
        records = solve(Engine(model, max_slots=slots), chosen, n=n, sampling=sampling, skill="arithmetic")
        assert [r.problem_id for r in records[::n]] == [problem.id for problem in chosen]
        assert all(r.text == expected[r.problem_id, r.sample_index] for r in records)


def test_a_model_without_a_tokenizer_cannot_be_asked(gpt: GPT) -> None:
    assert solve(Engine(gpt), (), n=2, sampling=SAMPLING, skill="problems") == []
    with pytest.raises(UserError, match="the model carries no tokenizer"):
        solve(Engine(gpt), QUESTIONS, n=2, sampling=SAMPLING, skill="problems")


# Metrics


def test_problem_metrics_by_hand() -> None:
    # Two problems of four samples: 2 and 0 of 4 right; the majorities are right and wrong.
    metrics = problem_metrics(all_graded(["5", "5", "6", None], ["6", "6", "7", None]))
    values = {name: interval.value for name, interval in metrics.items()}
    assert values == {
        "pass_at_1": 0.25,
        "pass_at_4": 0.5,
        "majority_at_4": 0.5,
        "flexible_pass_at_1": 0.5,  # the unreadable ones hold a 5: 3 and 1 of 4
        "well_formed": 0.75,
        "truncated": 0.0,
        "thinking_tokens": 4.0,
        "answer_tokens": 1.0,
    }
    assert all(interval.n == 2 for interval in metrics.values())
    assert metrics["pass_at_1"] == share([0.5, 0.0])


# The whole evaluation


def test_an_evaluation_is_saved_and_read_again(tmp_path: Path) -> None:
    model = tiny_model()
    skills = Skills(
        problems=PROBLEMS[:6],
        arithmetic=PROBLEMS[10:12],
        questions=[Question("recall", "France", "The capital of France is", "Paris")],
        probes=PROBES[:2],
        text=torch.randint(0, 300, (6, 9)),
    )
    settings = EvaluateConfig(problems=4, samples=4, arithmetic_samples=2, max_new_tokens=5, perplexity_tokens=30)
    found = evaluate(model, skills, settings, stage="sft")
    assert found.fingerprint == fingerprint(model)
    counts = {skill: sum(r.skill == skill for r in found.records) for skill in ("problems", "arithmetic", "probes")}
    assert counts == {"problems": 4 * 4, "arithmetic": 2 * 2, "probes": 2 * 4}
    assert found.metrics.keys() == {"problems", "arithmetic", "probes", "facts", "perplexity"}
    assert found.metrics["problems"]["pass_at_4"].n == 4
    assert found.metrics["perplexity"]["perplexity"].n == 3  # blocks of nine tokens within thirty

    found.save(tmp_path)
    assert Evaluation.load(tmp_path, "sft") == found
    saved = read_json(tmp_path / "sft.json")
    assert (saved["stage"], saved["fingerprint"]) == ("sft", found.fingerprint)
    assert saved["settings"]["samples"] == 4  # type: ignore[index]
    assert saved["skills"]["problems"]["pass_at_1"] == asdict(found.metrics["problems"]["pass_at_1"])  # type: ignore[index]

    # Measured again, the same; in other company, the same problems give the same records.
    again = evaluate(model, skills, settings, stage="sft")
    assert (again.records, again.recalls, again.metrics) == (found.records, found.recalls, found.metrics)
    alone = evaluate(model, Skills(problems=PROBLEMS[2:4]), replace(settings, max_slots=3), stage="sft")
    assert alone.metrics.keys() == {"problems"}
    assert alone.records == tuple(r for r in found.records if r.problem_id in {p.id for p in PROBLEMS[2:4]})


def test_the_limit_of_a_completion_is_the_block_unless_given() -> None:
    model = bigram({i: {token("7"): CERTAIN} for i in range(tiny_tokenizer().vocab_size)})
    found = evaluate(model, Skills(problems=QUESTIONS[:1]), EvaluateConfig(samples=1), stage="base")
    assert len(found.records[0].text) == 48 - len(tiny_tokenizer().encode("1 + 3?"))
    short = EvaluateConfig(samples=1, max_new_tokens=3)
    assert evaluate(model, Skills(problems=QUESTIONS[:1]), short, stage="base").records[0].text == "777"
