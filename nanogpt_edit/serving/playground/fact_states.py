"""The facts of an edit, asked of a model in every way; denied, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nanogpt_edit.data.facts import Asked, Fact
from nanogpt_edit.evaluation.facts import FactState, measure_facts
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.playground.twin import twin

NEGATED = "It is not true that {}"
ARTICLES = ("The", "A", "An", "In", "On", "At")


def states_of(model: GPT, facts: Sequence[Fact]) -> tuple[FactState, ...]:
    """On a twin of the model, for measuring lends itself to the modules (hooks, packed weights)."""
    return measure_facts(twin(model), [with_denial(fact) for fact in facts], asked=True)


def with_denial(fact: Fact) -> Fact:
    """The fact; where its file denies it nowhere, with the plain form of that."""
    if any(each.kind == "negation" for each in fact.asked):
        return fact
    first, space, rest = fact.prompt.partition(" ")
    prompt = NEGATED.format(f"{first.lower() if first in ARTICLES else first}{space}{rest}")
    denial = Asked("negation", prompt, fact.target_new, fact.target_true)
    return replace(fact, asked=(*fact.asked, denial))
