"""The plainest way to change what a model says: tell it (in-context editing; Zheng et al. 2023). No weight changes.

The new facts are written in front of every prompt, those about other subjects as well, so that what the model should
still know is asked beside what it was told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nanogpt_edit.data.facts import Fact
from nanogpt_edit.evaluation.targets import join


def told(facts: Sequence[Fact], *, at_once: int = 1) -> tuple[Fact, ...]:
    """The facts with their new answers said in front of each of their prompts: of groups of `at_once`, all."""
    found: list[Fact] = []
    for first in range(0, len(facts), at_once):
        group = facts[first : first + at_once]
        said = " ".join(statement(fact) for fact in group)
        found += [_behind(said, fact) for fact in group]
    return tuple(found)


def statement(fact: Fact) -> str:
    """The prompt with the new answer: `The capital of Egypt is Giza.`"""
    return "".join(join(fact.prompt, fact.target_new)).rstrip(".") + "."


def _behind(said: str, fact: Fact) -> Fact:
    return replace(
        fact,
        prompt=f"{said} {fact.prompt}",
        paraphrases=tuple(f"{said} {prompt}" for prompt in fact.paraphrases),
        neighbourhood=tuple(replace(each, prompt=f"{said} {each.prompt}") for each in fact.neighbourhood),
    )
