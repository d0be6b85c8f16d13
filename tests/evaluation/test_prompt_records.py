"""The sums over a fact's prompts, by hand: over facts, in pairs, and what stands beside them."""

from __future__ import annotations

import pytest

from nanogpt_edit.common.stats import share
from nanogpt_edit.evaluation.prompt_records import Kind, PromptScore, Verdict, by_kind, most_moved, verdict_of


def score(fact: int, kind: Kind, verdict: Verdict, *, knew: bool | None = None, **changes: float) -> PromptScore:
    p = {"p_before": 0.1, "p_after": 0.9} | changes
    return PromptScore(
        fact=fact, id=str(fact), kind=kind, prompt=f"{kind} {fact}", wanted="Giza", true="Cairo", knew=knew,
        p_before=p["p_before"], p_after=p["p_after"], rank_before=9, rank_after=1,
        written_before="Cairo", written_after="Giza", verdict=verdict,
    )  # fmt: skip


def test_a_verdict_is_right_before_and_after() -> None:
    told = [verdict_of(before, after) for before in (False, True) for after in (False, True)]
    assert told == ["missed", "gained", "lost", "kept"]
    assert [(s.right_before, s.right_after) for s in (score(0, "alias", verdict) for verdict in told)] == [
        (False, False), (False, True), (True, False), (True, True),
    ]  # fmt: skip


def test_kinds_are_summed_over_facts_not_over_prompts() -> None:
    """Fact 0 has two paraphrases of which one is gained, fact 1 has one: (1/2 + 1) / 2, not 2 of 3."""
    prompts = [
        score(0, "paraphrase", "gained", knew=True),
        score(0, "paraphrase", "missed", knew=False),
        score(1, "paraphrase", "gained", knew=True),
        score(0, "negation", "lost", knew=True),
        score(0, "neighbour", "kept", knew=True),
    ]
    paraphrase, negation, neighbour = by_kind(prompts)
    assert (paraphrase.kind, paraphrase.prompts) == ("paraphrase", 3)
    assert (paraphrase.knew, paraphrase.before, paraphrase.after) == (
        share([0.5, 1.0]), share([0.0, 0.0]), share([0.5, 1.0]),
    )  # fmt: skip
    assert paraphrase.change is not None
    assert (paraphrase.change.delta, paraphrase.change.p_value) == (0.75, pytest.approx(0.5))  # two facts, both up
    assert (negation.kind, negation.knew, negation.before.value, negation.after.value) == ("negation", None, 1.0, 0.0)
    assert negation.change is None  # of one fact nothing is tested
    assert (neighbour.kind, neighbour.knew) == ("neighbour", None)


def test_what_else_changed_is_ranked_lost_answers_first() -> None:
    far = score(0, "neighbour", "kept", p_before=0.9, p_after=0.4)
    near = score(1, "same_subject", "missed", p_before=0.2, p_after=0.1)
    lost = score(2, "same_subject", "lost", p_before=0.3, p_after=0.25)
    assert most_moved([near, far, score(3, "alias", "lost"), lost]) == [lost, far, near]
