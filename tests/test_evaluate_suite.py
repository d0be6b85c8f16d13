"""The skills, measured on stand-ins whose every probability is chosen, and on random models by the simple path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny_stages import PROBLEMS, tiny_model, tiny_tokenizer
from torch import Tensor

from nanogpt_edit.data.problems import Problem
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling import Sampling
from nanogpt_edit.errors import UserError
from nanogpt_edit.evaluate.records import EvalRecord, read_records
from nanogpt_edit.evaluate.suite import (
    PROBES,
    EvaluateConfig,
    Question,
    Recall,
    Skills,
    compare_recalls,
    compare_records,
    evaluate,
    fact_metrics,
    is_arithmetic,
    perplexity,
    probe_metrics,
    problem_metrics,
    read_recalls,
    recall,
    solve,
)
from nanogpt_edit.files import read_json
from nanogpt_edit.model.checkpoint import fingerprint
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache


def bigram(odds: Mapping[int, Mapping[int, float]]) -> GPT:
    """A stand-in for a model: after token a, token b is odds[a][b] times as probable as a token that is not named."""
    size = tiny_tokenizer().vocab_size
    table = torch.ones(size, size)
    for last, row in odds.items():
        for token, weight in row.items():
            table[last, token] = weight

    class Bigram(GPT):
        def hidden(self, token_ids: Tensor, *, cache: KVCache | None = None, **_: object) -> Tensor:  # type: ignore[override]
            if cache is not None:
                cache.advance(token_ids.shape[1])
            return torch.nn.functional.one_hot(token_ids, size).float()

        def logits(self, states: Tensor) -> Tensor:
            return (states @ table).log()

    model = tiny_model()
    model.__class__ = Bigram
    return model


def token(text: str) -> int:
    (token_id,) = tiny_tokenizer().encode(text)
    return token_id


CERTAIN = 1e12


def writes(*pieces: str, after: str = "?") -> dict[int, dict[int, float]]:
    """Odds of a model that continues every question with these single-token pieces."""
    chain = [after, *pieces]
    return {token(last): {token(then): CERTAIN} for last, then in zip(chain, pieces, strict=False)}


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
    with pytest.raises(UserError, match="the model has no tokenizer"):
        solve(Engine(gpt), QUESTIONS, n=2, sampling=SAMPLING, skill="problems")


# Metrics


def graded(problem: int, sample: int, answer: str | None, **changes: object) -> EvalRecord:
    """A record of a problem whose right answer is 5."""
    text = "5 and so on" if answer is None else f"<think></think><answer>{answer}</answer>"
    fields: dict[str, object] = {
        "skill": "problems",
        "problem_id": f"test:{problem}",
        "sample_index": sample,
        "prompt": "2 + 3?",
        "gold": "5",
        "text": text,
        "strict": answer,
        "flexible": answer or "5",
        "correct": answer == "5",
        "well_formed": answer is not None,
        "thinking_tokens": 4,
        "answer_tokens": 1,
        "finish_reason": "stop",
    }
    return EvalRecord(**(fields | changes))  # type: ignore[arg-type]


def all_graded(*answers: Sequence[str | None], **changes: object) -> list[EvalRecord]:
    return [graded(p, s, answer, **changes) for p, group in enumerate(answers) for s, answer in enumerate(group)]


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
    assert (metrics["pass_at_1"].low, metrics["pass_at_1"].high) == (0.0, 0.5)  # resampling two problems


@pytest.mark.parametrize(
    ("text", "arithmetic"),
    [
        ("Paris is a city.", False),
        ("2 + 2", True),
        ("So it is = 4", True),
        ("<think></think><answer>42</answer>", True),
        ("<think></think><answer>Paris</answer>", False),
        ("<think>6 / 2</think><answer>Paris</answer>", True),
        ("It has 20 districts.", False),
        ("", False),
    ],
)
def test_what_counts_as_arithmetic(text: str, arithmetic: bool) -> None:
    assert is_arithmetic(text) == arithmetic


def test_probes_are_averaged_over_prompts() -> None:
    records = [graded(0, 0, None, text="blue"), graded(0, 1, None, text="1+1"), graded(1, 0, None, text="sea")]
    records += [graded(1, 1, None, text="sand")]
    interval = probe_metrics(records)["non_arithmetic"]
    assert (interval.value, interval.n) == (0.75, 2)


# Facts


def test_recall_by_hand() -> None:
    # 305 tokens or so, V of them. After "s" (of "is"): "Paris" begins with " P"? Take digits, which are single tokens:
    # the target " 14" is a space, "1" and "4".
    tokenizer = tiny_tokenizer()
    space, one, four = tokenizer.encode(" 14")
    size = tokenizer.vocab_size
    last = tokenizer.encode("It is")[-1]
    odds = {last: {space: 4.0, token("?"): 7.0}, space: {one: 3.0}, one: {four: 9.0, token("5"): 2.0}}
    question = Question(group="recall", subject="It", prompt="It is", target="14")
    (found,) = recall(bigram(odds), [question])
    first = 4 / (size - 2 + 4 + 7)
    whole = first * 3 / (size - 1 + 3) * 9 / (size - 2 + 9 + 2)
    assert found.rank == 2  # only "?" is more probable than the space
    assert found.p_first == pytest.approx(first, rel=1e-5)
    assert found.p_target == pytest.approx(whole, rel=1e-5)
    assert found.greedy == "?14"  # the most probable token at each place
    assert not found.recalled
    assert (found.group, found.subject, found.prompt, found.target) == ("recall", "It", "It is", "14")
    odds[last][space] = 8.0
    (found,) = recall(bigram(odds), [question])
    assert (found.rank, found.recalled, found.greedy) == (1, True, "14")


def test_recall_is_that_of_the_simple_path_in_any_batch() -> None:
    model, tokenizer = tiny_model().eval(), tiny_tokenizer()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.dim() == 2 else 1)
    asked = [
        Question("recall", name, f"{name} is", target)
        for name, target in (("Tom", "a baker"), ("The Eiffel Tower", "in Paris"), ("France", "3"), ("He", "left now"))
    ]
    together = recall(model, asked)
    for rows in (1, 2, 3):
        for one, other in zip(recall(model, asked, rows=rows), together, strict=True):
            assert (one.p_first, one.p_target) == pytest.approx((other.p_first, other.p_target), rel=1e-4)
            assert replace(one, p_first=0, p_target=0) == replace(other, p_first=0, p_target=0)
    for question, found in zip(asked, together, strict=True):
        ids, target = tokenizer.encode(question.prompt), tokenizer.encode(f" {question.target}")
        with torch.no_grad():
            logprobs = model(torch.tensor([[*ids, *target]]))[0].log_softmax(dim=-1)
        own = [logprobs[len(ids) - 1 + i, target_id].item() for i, target_id in enumerate(target)]
        assert found.p_first == pytest.approx(math.exp(own[0]), rel=1e-4)
        assert found.p_target == pytest.approx(math.exp(sum(own)), rel=1e-4)
        assert found.rank == 1 + int((logprobs[len(ids) - 1] > own[0]).sum())
    assert recall(model, []) == []


def recalled(group: str, subject: str, *hits: bool) -> list[Recall]:
    return [Recall(group, subject, f"{subject} {i}", "x", "x", 1, 0.5, 0.5, hit) for i, hit in enumerate(hits)]


def test_facts_are_averaged_over_subjects() -> None:
    # Two phrasings of one subject, three of the other: (½ + 1) / 2, not 4 of 5.
    recalls = recalled("recall", "Egypt", True, False) + recalled("recall", "Peru", True, True, True)
    metrics = fact_metrics(recalls + recalled("edited", "Egypt", False))
    assert (metrics["recall"].value, metrics["recall"].n) == (0.75, 2)
    assert (metrics["edited"].value, metrics["edited"].n) == (0.0, 1)


# Perplexity


def test_perplexity_of_a_model_that_knows_nothing_is_the_size_of_its_vocabulary() -> None:
    model = tiny_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    found = perplexity(model, torch.randint(0, 300, (3, 9)))
    assert found["perplexity"].value == pytest.approx(300, rel=1e-4)
    assert found["nats_per_token"].value == pytest.approx(math.log(300), rel=1e-5)


def test_perplexity_is_the_mean_over_all_tokens() -> None:
    model = tiny_model().eval()
    blocks = torch.randint(0, 300, (5, 12))
    nats = []
    for block in blocks:
        with torch.no_grad():
            logprobs = model(block[None])[0].double().log_softmax(dim=-1)
        nats += [-logprobs[i, block[i + 1]].item() for i in range(11)]
    expected = sum(nats) / 55
    for rows in (1, 2, 32):
        found = perplexity(model, blocks, rows=rows)
        assert found["nats_per_token"].value == pytest.approx(expected, rel=1e-6)
        assert found["perplexity"].value == pytest.approx(math.exp(expected), rel=1e-5)
        assert found["perplexity"].low == pytest.approx(math.exp(found["nats_per_token"].low))
        assert found["perplexity"].n == 5


# Before and after


def test_differences_on_the_same_problems_by_hand() -> None:
    before = all_graded(["6", "6"], ["5", "6"], ["6", None])
    after = all_graded(["5", "6"], ["5", "5"], ["6", "5"])
    found = compare_records(before, after)
    assert found["pass_at_1"].delta == pytest.approx(0.5)
    assert found["pass_at_1"].n == 3
    assert found["pass_at_1"].p_value == 0.25  # three gains: one of the four sign patterns up to a flip
    assert found["well_formed"].delta == pytest.approx(1 / 6)
    assert not any(name.startswith("arithmetic") for name in found)


def test_shorter_thinking_is_better() -> None:
    before = all_graded(*[["5"]] * 8, thinking_tokens=9)
    after = all_graded(*[["5"]] * 8, thinking_tokens=7)
    found = compare_records(before, after)["thinking_tokens"]
    assert (found.delta, found.verdict) == (-2, "better")


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
    assert [name for name in found if name.startswith("arithmetic")] == ["arithmetic_pass_at_1"]
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
    assert tuple(read_records(tmp_path / "sft.jsonl")) == found.records
    assert tuple(read_recalls(tmp_path / "sft_facts.jsonl")) == found.recalls
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


def test_a_file_that_holds_no_recalls_is_named(tmp_path: Path) -> None:
    (tmp_path / "x_facts.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match=r"x_facts\.jsonl: not a file of recalled facts"):
        read_recalls(tmp_path / "x_facts.jsonl")
