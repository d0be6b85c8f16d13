"""Recall of facts: by hand, and by the simple path on random models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from edit_world import facts, random_model, trained_model
from evaluate_stand_ins import bigram, recalled, token
from tiny_stages import tiny_model, tiny_tokenizer

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.facts import Fact, Neighbour
from nanogpt_edit.evaluation import targets
from nanogpt_edit.evaluation.facts import Question, fact_metrics, measure_facts, recall
from nanogpt_edit.evaluation.records import read_recalls
from nanogpt_edit.model.gpt import GPT


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


def test_recall_is_that_of_the_simple_path_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model().eval(), tiny_tokenizer()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.dim() == 2 else 1)
    asked = [
        Question("recall", name, f"{name} is", target)
        for name, target in (("Tom", "a baker"), ("The Eiffel Tower", "in Paris"), ("France", "3"), ("He", "left now"))
    ]
    together = recall(model, asked)
    for room in (1, 12, 30):
        monkeypatch.setattr(targets, "BATCH_TOKENS", room)
        monkeypatch.setattr(targets, "LOGIT_NUMBERS", room * tokenizer.vocab_size)
        for one, other in zip(recall(model, asked), together, strict=True):
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


def test_facts_are_averaged_over_subjects() -> None:
    # Two phrasings of one subject, three of the other: (½ + 1) / 2, not 4 of 5.
    recalls = recalled("recall", "Egypt", True, False) + recalled("recall", "Peru", True, True, True)
    metrics = fact_metrics(recalls + recalled("edited", "Egypt", False))
    assert (metrics["recall"].value, metrics["recall"].n) == (0.75, 2)
    assert (metrics["edited"].value, metrics["edited"].n) == (0.0, 1)


def test_a_file_that_holds_no_recalls_is_named(tmp_path: Path) -> None:
    (tmp_path / "x_facts.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match=r"x_facts\.jsonl:1: the field .* is missing"):
        read_recalls(tmp_path / "x_facts.jsonl")


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(request.param)


@torch.no_grad()
def test_measurements_equal_plain_forward_passes(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "BATCH_TOKENS", 60)  # many small batches
    assert model.tokenizer is not None
    asked = (replace(facts(1)[0], target_new="Rome and Lima"), facts(2)[1])  # one target of several tokens
    for fact, state in zip(asked, measure_facts(model, asked), strict=True):
        cases = [(fact.prompt, fact.target_new, state.new), (fact.prompt, fact.target_true, state.true)]
        cases += [(p, fact.target_true, pair[1]) for p, pair in zip(fact.paraphrases, state.paraphrases, strict=True)]
        cases += [
            (n.prompt, n.target_true, pair[0]) for n, pair in zip(fact.neighbourhood, state.neighbourhood, strict=True)
        ]
        for prompt, target, score in cases:
            before, after = model.tokenizer.encode(prompt), model.tokenizer.encode(" " + target)
            probabilities = model(torch.tensor([before + after]))[0, len(before) - 1 : -1].softmax(-1)
            each = [float(probabilities[j, token]) for j, token in enumerate(after)]
            assert score.p_first == pytest.approx(each[0], rel=1e-3)
            assert score.p_target == pytest.approx(math.prod(each), rel=1e-3)
            assert score.p_token == pytest.approx(math.prod(each) ** (1 / len(each)), rel=1e-3)
            assert score.rank == 1 + int((probabilities[0] > probabilities[0, after[0]]).sum())
            assert score.token_accuracy == sum(
                int(probabilities[j].argmax()) == token for j, token in enumerate(after)
            ) / len(after)


def test_the_trained_model_knows_its_facts() -> None:
    for fact, state in zip(facts(4), measure_facts(trained_model(), facts(4)), strict=True):
        assert state.answer == fact.target_true
        assert state.true.rank == 1
        assert state.true.token_accuracy == 1.0
        assert all(true.p_token > new.p_token for new, true in state.paraphrases)


@pytest.mark.parametrize(
    "fact",
    [
        Fact("capital of Valdoria", "Valdoria", target_new="Oslo", target_true=""),
        Fact("capital of Valdoria", "Valdoria", target_new="Oslo", target_true="  "),
        Fact("a", "a", "b", "c", neighbourhood=(Neighbour("capital of Valdoria", " "),)),
    ],
)
def test_without_a_true_answer_nothing_is_compared(fact: Fact) -> None:
    with pytest.raises(UserError, match="has no true answer"):
        measure_facts(trained_model(), [fact])
