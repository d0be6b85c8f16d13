"""Scores: probabilities against plain forward passes, the comparisons by hand, and the files they go to."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from edit_world import PLAIN, covariance_blocks, facts, random_model, trained_model

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.facts import Fact, Neighbour
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.measure import FactState, cut_answer, measure_facts, ngram_entropy, written_answers
from nanogpt_edit.editing.outcome import describe, shortfall
from nanogpt_edit.editing.patch import EditedFact
from nanogpt_edit.editing.scores import compare_states, score_patch
from nanogpt_edit.evaluation import targets
from nanogpt_edit.evaluation.targets import TargetScore
from nanogpt_edit.model.gpt import GPT


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


def test_answers_end_with_the_sentence() -> None:
    asked = [("capital of Valdoria", "Paris"), ("the king of Kestonia ", "Cai")]
    assert written_answers(trained_model(), asked) == [("Paris", True), ("Cairo", False)]


@pytest.mark.parametrize(
    ("text", "target", "answer", "exact"),
    [
        (" Athens. It is", "Athens", "Athens", True),
        (" Athens", "Athens", "Athens", True),
        (" athens\nAnd", "Athens", "athens", True),
        (" Athensis. It", "Athens", "Athensis", False),
        (" Stan Leee.", "Stan Lee", "Stan Leee", False),
        (" Paris is Paris.", "Paris", "Paris is Paris", False),
        (" Toronto Toronto", "Toronto", "Toronto Toronto", False),
        (" Mark Zuckerberg. He", "Mark Zuckerberg", "Mark Zuckerberg", True),
        (" Mark Zuckerb", "Mark Zuckerberg", "Mark Zuckerb", False),
        (" St. Louis. It lies", "St. Louis", "St. Louis", True),
        (" St. Louis in Missouri. It", "St. Louis", "St. Louis in Missouri", False),
        (" Washington, D.C.\n", "Washington, D.C.", "Washington, D.C.", True),
        (" Rio!", "Rio", "Rio", True),
        (" 3.14159. It", "3.14", "3.14159", False),
        (" Cairo. It", "Alexandria", "Cairo", False),
        (" 東京\n", "東京", "東京", True),
        ("", "Athens", "", False),
    ],
)
def test_an_answer_is_exact_with_its_natural_end_and_nothing_added(
    text: str, target: str, answer: str, exact: bool
) -> None:
    assert cut_answer(text, target) == (answer, exact)


def test_an_answer_may_be_as_long_as_its_target() -> None:
    """A target of many tokens is not cut: it is written whole, and then the sentence ends."""
    model = trained_model()
    assert model.tokenizer is not None
    long = " ".join(["Paris"] * 30)
    assert len(model.tokenizer.encode(long)) > 30
    ((answer, exact),) = written_answers(model, [("capital of Valdoria", long)])
    assert (answer, exact) == ("Paris", False)


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


def target(p: float, rank: int = 1) -> TargetScore:
    return TargetScore(p_first=p, rank=rank, p_target=p, p_token=p, token_accuracy=float(rank == 1))


def state(
    new: float, true: float, rank: int, paraphrases: list[bool], neighbours: list[bool], answer: str
) -> FactState:
    win, lose = target(0.6), target(0.2, rank=3)
    return FactState(
        new=target(new, rank),
        true=target(true),
        paraphrases=tuple((win, lose) if good else (lose, win) for good in paraphrases),
        neighbourhood=tuple((win, lose) if good else (lose, win) for good in neighbours),
        answer=answer,
        exact=answer == "Giza",
    )


FACT = Fact("The capital of Egypt is", "Egypt", target_new="Giza", target_true="Cairo", relation="capital")
EDITED = EditedFact(FACT, lookup="exact", probability=0.9, shift=1.0, steps=5)


def test_an_edit_by_hand() -> None:
    before = [state(0.1, 0.8, 7, [False, False], [True, True], "Cairo")] * 2
    after = [
        state(0.7, 0.1, 1, [True, False], [True, True], "Giza"),
        state(0.2, 0.5, 2, [True, True], [True, False], "Cairo, giza"),
    ]
    scores = compare_states([EDITED, EDITED], before, after)
    assert scores.success.value == 0.5
    assert scores.efficacy.value == 0.5
    assert scores.contains.value == 1.0
    assert scores.exact.value == 0.5
    assert (scores.efficacy_before.value, scores.records[0].paraphrase_before) == (0.0, 0.0)
    assert scores.paraphrase_rank1 == scores.paraphrase
    assert describe(scores) == (
        "1 of 2 facts at rank 1, 1 written freely are exactly the new answer, p(new) > p(true) on 75% of paraphrases "
        "(0% before), rank 1 on 75% of them"
    )
    assert scores.paraphrase is not None
    assert scores.paraphrase.value == 0.75
    assert scores.neighbourhood_before is not None
    assert scores.neighbourhood_before.value == 1.0
    assert scores.neighbourhood_after is not None
    assert scores.neighbourhood_after.value == 0.75
    assert scores.score is not None
    assert scores.score.value == pytest.approx(3 / (1 / 0.5 + 1 / 0.75 + 1 / 0.75))
    first, second = scores.records
    assert first.reason == ""
    assert second.reason == "value found (p 0.9), but the weights did not take it up; rank 7 to 2, p 0.1 to 0.2"
    lost = compare_states([replace(EDITED, probability=0.1)], before[1:], after[1:]).records[0]
    assert lost.reason.startswith("no value found: the optimisation reached p 0.1 with ‖δ‖ 1‖h‖")


def test_what_did_not_work_is_said_with_its_likely_reason() -> None:
    before, good = state(0.1, 0.8, 7, [], [], "Cairo"), state(0.7, 0.1, 1, [], [], "Giza")
    lost = state(0.2, 0.5, 2, [], [], "Luxor")
    config = EditConfig(layers=(0, 1))

    def told(*after: FactState, probability: float = 0.9) -> str:
        edited = [replace(EDITED, probability=probability)] * len(after)
        return shortfall(compare_states(edited, [before] * len(after), after), config)

    assert told(good, good) == ""
    assert told(good, lost) == ""  # half of them, and every text has changed
    assert told(good, lost, lost).startswith("Fell short: only 1 of 3 facts have their new answer at rank 1. Likely")
    assert "values were found, but the weights did not take them up; layers [0, 1]" in told(good, lost, lost)
    assert "for 2 of 2 no value was found" in told(good, lost, lost, probability=0.1)
    assert '1 of 3 says the same as before ("The capital of Egypt is" → "Cairo")' in told(
        good, good, replace(lost, answer="Cairo")
    )
    assert "1 of 1 says the same as before" in told(replace(good, answer="Cairo", exact=False))
    assert told(good, replace(good, answer="Giza Plateau", exact=False), lost).startswith(
        "Fell short: only 1 of 3 facts are written freely as exactly the new answer. Likely"
    )
    goes_on = replace(good, answer="Giza Plateau", exact=False)
    assert told(goes_on).endswith(
        "the text goes on in another way. --sweep chooses settings by trial, --recipe FILE takes them."
    )
    said_before = state(0.7, 0.1, 1, [], [], "Giza")
    assert shortfall(compare_states([EDITED], [said_before], [good]), config) == ""  # the new answer, all along


def test_equal_probabilities_are_no_success() -> None:
    tie = state(0.4, 0.4, 1, [], [], "")
    record = compare_states([EDITED], [tie], [tie]).records[0]
    assert not record.efficacy
    assert record.paraphrase_success is None
    assert compare_states([EDITED], [tie], [tie]).score is None


def test_ngram_entropy_by_hand() -> None:
    """ababab: bigrams ab ×3, ba ×2; trigrams aba ×2, bab ×2. All different: log2 of their number."""
    two = -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4))
    assert ngram_entropy([1, 2, 1, 2, 1, 2]) == pytest.approx(2 / 3 * two + 4 / 3 * 1.0)
    assert ngram_entropy(range(9)) == pytest.approx(2 / 3 * 3 + 4 / 3 * math.log2(7))
    assert ngram_entropy([5] * 20) == 0.0
    assert ngram_entropy([5]) == 0.0


def test_failures_are_grouped_by_relation() -> None:
    good, bad = state(0.7, 0.1, 1, [], [], "Giza"), state(0.2, 0.5, 2, [], [], "Cairo")
    edited = [replace(EDITED, fact=replace(FACT, relation=name, id=name)) for name in ("a", "b", "b", "c")]
    scores = compare_states(edited, [bad] * 4, [bad, bad, bad, good])
    assert {name: [each.id for each in group] for name, group in scores.failures().items()} == {
        "b": ["b", "b"],
        "a": ["a"],
    }


def test_the_files_hold_what_was_measured(tmp_path: Path) -> None:
    model = trained_model()
    config = replace(PLAIN, layers=(0, 1), covariance_weight=5.0, learning_rate=0.3, steps=5, n_prefixes=0)
    patch = edit_model(model, facts(3), config, covariance_blocks=covariance_blocks())
    scores = score_patch(model, patch, text=covariance_blocks()[:8])
    scores.save(tmp_path, "three", patch=patch)
    summary = json.loads((tmp_path / "three.json").read_text(encoding="utf-8"))
    assert (summary["n"], summary["method"], summary["layers"]) == (3, "memit", [0, 1])
    assert summary["success"] == {
        "value": scores.success.value,
        "low": scores.success.low,
        "high": scores.success.high,
        "n": 3,
    }
    assert summary["settings"]["covariance_weight"] == 5.0
    assert summary["perplexity_after"]["value"] > summary["perplexity_before"]["value"] > 1.0
    assert summary["entropy_before"]["value"] > 0.0
    lines = [json.loads(line) for line in (tmp_path / "three.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["capital-0", "capital-1", "capital-2"]
    needed = {"old_answer", "new_answer", "p_first_before", "rank_after", "success", "subject_lookup", "reason"}
    assert needed <= set(lines[0])
