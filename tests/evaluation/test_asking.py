"""What counts as right on every kind of prompt, worked out by hand on made-up states, and asked of a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from edit_world import facts, trained_model

from nanogpt_edit.data.facts import Asked, Fact, Neighbour
from nanogpt_edit.evaluation.asking import Ask, AskedState, ask_all, asks_of, behind, compare_asked, holds
from nanogpt_edit.evaluation.facts import measure_facts
from nanogpt_edit.evaluation.prompt_records import RULES, Kind
from nanogpt_edit.evaluation.targets import TargetScore

FACT = Fact("The capital of Egypt is", "Egypt", target_new="Giza", target_true="Cairo", id="egypt")


def target(p: float, rank: int = 1, *, accuracy: float = 0.0) -> TargetScore:
    return TargetScore(p_first=p, rank=rank, p_target=p, p_token=p, token_accuracy=accuracy, greedy="Oslo")


def asked(kind: Kind, text: str | None, **p: float) -> AskedState:
    """A state of "…" with its answers Giza (now) and Cairo (before), of these probabilities."""
    scores = {"Giza": target(p.get("giza", 0.5)), "Cairo": target(p.get("cairo", 0.4))}
    return AskedState(Ask(kind, "…", "Giza", "Cairo"), scores, text)


@pytest.mark.parametrize(
    ("kind", "text", "right"),
    [
        ("question", " Giza.\nQ:", True),
        ("question", " The capital of Egypt is Giza.", False),  # right, but not exactly the answer
        ("alias", " Giza, of course.", False),
        ("reversed", " the land of Giza, on the Nile. It", True),  # the sentence holds it
        ("one_hop", " Gizans live there. Giza", False),  # no whole word, and the next sentence is another
        ("negation", " Cairo. It is Giza.", True),  # "It is not true that the capital of Egypt is Cairo": so it is
        ("negation", " Giza, but Cairo.", False),  # contradicts what was written
        ("negation", " a small town.", True),  # says nothing wrong
    ],
)
def test_right_in_a_text_by_hand(kind: Kind, text: str, right: bool) -> None:
    assert asked(kind, text).right("Giza") == right


def test_right_by_a_choice_or_by_heart() -> None:
    claim = AskedState(Ask("claim", "…", "False", "True"), {"False": target(0.3), "True": target(0.2)}, None)
    assert claim.right("False")
    assert not claim.right("True")
    tie = replace(claim, scores={"False": target(0.3), "True": target(0.3)})
    assert not tie.right("False")
    subject = Ask("same_subject", "…", "Nile", "Nile")
    assert AskedState(subject, {"Nile": target(0.1, accuracy=1.0)}, None).right("Nile")
    assert not AskedState(subject, {"Nile": target(0.4, accuracy=0.5)}, None).right("Nile")  # its second token is not
    assert not holds("Athensis", "Athens")
    assert holds("in ATHENS, once", "Athens")


def test_before_and_after_are_compared_by_what_is_held_then() -> None:
    """The model says "Cairo" before and "Giza" after, in whatever it is asked: it follows, and so contradicts itself
    where the sentence is negated, before as well as after."""
    kinds: tuple[Kind, ...] = ("question", "negation", "same_subject")
    before = [asked(kind, " Cairo.") for kind in kinds]
    after = [asked(kind, " Giza.", giza=0.9) for kind in kinds]
    question, negation, stays = compare_asked([FACT], [before], [after])
    assert (question.knew, question.verdict, question.p_before, question.p_after) == (True, "gained", 0.5, 0.9)
    assert (question.written_before, question.written_after, question.id, question.fact) == (
        "Cairo",
        "Giza",
        "egypt",
        0,
    )
    assert (negation.knew, negation.verdict) == (False, "missed")
    assert stays.verdict == "missed"
    denies = [asked("negation", " Giza.")], [asked("negation", " Cairo.")]
    assert compare_asked([FACT], [denies[0]], [denies[1]])[0].verdict == "kept"


def test_every_prompt_is_asked_with_the_answers_that_are_right_then() -> None:
    fact = replace(
        FACT,
        paraphrases=("Egypt's capital is",),
        neighbourhood=(Neighbour("The capital of Libya is", "Tripoli"),),
        asked=(
            Asked("question", "What is the capital of Egypt?", "Giza", "Cairo"),
            Asked("same_subject", "The longest river in Egypt is the", "Nile"),
            Asked("attribute", "The pyramids stand in", "Giza", "Giza"),
        ),
    )
    assert list(asks_of(fact)) == [
        Ask("prompt", "The capital of Egypt is", "Giza", "Cairo"),
        Ask("behind", "It is well known that The capital of Egypt is", "Giza", "Cairo"),
        Ask("paraphrase", "Egypt's capital is", "Giza", "Cairo"),
        Ask("neighbour", "The capital of Libya is", "Tripoli", "Tripoli", "Giza"),
        Ask("question", "Q: What is the capital of Egypt?\nA:", "Giza", "Cairo"),
        Ask("same_subject", "The longest river in Egypt is the", "Nile", "Nile"),
        Ask("attribute", "The pyramids stand in", "Giza", "Giza", "Cairo"),
    ]
    assert {ask.kind for ask in asks_of(fact)} <= set(RULES)


def test_a_model_is_asked_as_the_single_scores_say() -> None:
    """The prompts' states agree with `measure_facts`, and with the model's own free answers."""
    model, some = trained_model(), facts(3)
    some = tuple(
        replace(fact, asked=(Asked("negation", f"not {fact.prompt}", fact.target_new, fact.target_true),))
        for fact in some
    )
    plain, full = measure_facts(model, some), measure_facts(model, some, asked=True)
    for one, other, fact in zip(plain, full, some, strict=True):
        assert other.new.p_target == pytest.approx(one.new.p_target, rel=1e-4)
        assert (other.answer, other.new.rank, other.true.rank) == (one.answer, one.new.rank, one.true.rank)
        own = other.asked[0]
        assert own.ask == Ask("prompt", fact.prompt, fact.target_new, fact.target_true)
        assert own.right(fact.target_true)
        assert own.written(fact.target_true) == fact.target_true
        assert [each.text is None for each in other.asked] == [
            RULES[each.ask.kind] not in ("exact", "says", "denies") for each in other.asked
        ]
        assert other.behind == other.asked[1].scores[fact.target_new]
        assert other.asked[1].ask.prompt == behind(fact)
    assert ask_all(model, []) == ()
