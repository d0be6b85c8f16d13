"""Scores: probabilities against plain forward passes, the comparisons by hand, and the files they go to."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from edit_world import PLAIN, covariance_blocks, facts, trained_model

from nanogpt_edit.common.stats import share
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch import EditedFact
from nanogpt_edit.editing.records import Edit
from nanogpt_edit.editing.scores import (
    compare_states,
    describe,
    edit_record,
    measure_state,
    score_patch,
    shortfall,
)
from nanogpt_edit.evaluation import drift
from nanogpt_edit.evaluation.facts import FactState
from nanogpt_edit.evaluation.perplexity import block_nats, perplexity
from nanogpt_edit.evaluation.targets import TargetScore
from nanogpt_edit.evaluation.writing import written_answers


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


def test_what_was_read_and_written_already_serves_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The perplexity takes the states of the text whose drift is measured, and an answer is what was written when
    every prompt was asked: as each is by itself."""
    model, text, asked = trained_model(), covariance_blocks()[:8], facts(3)
    monkeypatch.setattr(drift, "DRIFT_TOKENS", 3 * (text.shape[1] - 1))  # of eight blocks three
    found = measure_state(model, asked, text=text)
    assert found.reading is not None and len(found.reading.blocks) == 3
    assert found.perplexity is not None
    assert asdict(found.perplexity) == pytest.approx(asdict(perplexity(block_nats(model, text))["perplexity"]))
    alone = written_answers(model, [(fact.prompt, fact.target_new) for fact in asked])
    assert [(state.answer, state.exact) for state in found.facts] == alone


def test_behind_other_text_is_told_apart() -> None:
    """The prompt alone holds and the text behind another does not, and the other way round."""
    plain = state(0.1, 0.8, 7, [], [], "Cairo")
    before = [replace(plain, behind=target(0.1, 9)), replace(plain, behind=target(0.3, 1))]
    after = [replace(plain, new=target(0.9, 1), behind=target(0.2, 4)), replace(plain, behind=target(0.6, 1))]
    scores = compare_states([EDITED, EDITED], before, after)
    assert (scores.success.value, scores.behind_before, scores.behind) == (0.5, share([0.0, 1.0]), share([0.0, 1.0]))
    record = scores.records[0]
    assert (record.behind_rank_before, record.behind_rank_after, record.behind_p_first_after) == (9, 4, 0.2)
    assert describe(scores).startswith("1 of 2 facts at rank 1 (1 behind other text), ")


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
    edit_record("three", patch, scores).save(tmp_path)
    assert len(scores.prompts) == sum(2 + len(f.paraphrases) + len(f.neighbourhood) + len(f.asked) for f in facts(3))
    assert scores.drift is not None
    assert scores.drift.kl.value > 0.0
    short = score_patch(model, patch, text=covariance_blocks()[:8], asked=False)
    assert (short.prompts, short.drift) == ((), None)
    assert short.success == scores.success
    assert Edit.load(tmp_path / "three.json").scores == scores
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
