"""What else an edit changed: true facts that it leaves alone, and ordinary text, what moved most first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from nanogpt_edit.common.stats import Interval, change_of_share, share
from nanogpt_edit.evaluation.drift import drift, read
from nanogpt_edit.evaluation.facts import Question
from nanogpt_edit.evaluation.prompt_records import Drift
from nanogpt_edit.evaluation.targets import score_targets
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.serving.playground.twin import twin

SHOWN = 6


@dataclass(frozen=True)
class MovedFact:
    """A true fact, and the probability of its whole answer before and now."""

    prompt: str
    target: str
    before: float
    now: float
    recalled_before: bool
    """Was the answer what the model would say?"""
    recalled_now: bool


@dataclass(frozen=True)
class Elsewhere:
    """What else changed, as means with intervals and the worst cases."""

    recalled_before: Interval
    """Share of the facts that the model would say."""
    recalled_now: Interval
    change: Interval
    """Of the probability of their answers."""
    facts: tuple[MovedFact, ...]
    """Those that moved most."""
    text: Drift
    """How far the next-token distributions moved on ordinary text."""


@dataclass(frozen=True)
class Unrelated:
    """What an edit should leave alone: facts, and token ids of text, (N, T + 1)."""

    questions: tuple[Question, ...]
    text: Tensor


class Witness:
    """Knows what a model made of what is `unrelated` to an edit."""

    def __init__(self, before: GPT, unrelated: Unrelated) -> None:
        self.unrelated, self.model = unrelated, twin(before)
        self.pairs = [(each.prompt, each.target) for each in unrelated.questions]
        self.scores, self.reading = score_targets(self.model, self.pairs), read(self.model, unrelated.text)

    def compare(self, now: GPT) -> Elsewhere:
        """What the model as it is `now` makes of it, beside what it was."""
        facts = [
            MovedFact(prompt, target, old.p_target, new.p_target, old.token_accuracy == 1.0, new.token_accuracy == 1.0)
            for (prompt, target), old, new in zip(self.pairs, self.scores, score_targets(now, self.pairs), strict=True)
        ]
        return Elsewhere(
            recalled_before=share([each.recalled_before for each in facts]),
            recalled_now=share([each.recalled_now for each in facts]),
            change=change_of_share([each.now - each.before for each in facts]),
            facts=tuple(sorted(facts, key=lambda each: -abs(each.now - each.before))[:SHOWN]),
            text=drift(self.model, self.reading, read(now, self.unrelated.text)),
        )


def fits(model: GPT, prompt: str, target: str) -> bool:
    """Can the model read the prompt with its target?"""
    return len(tokenizer_of(model).encode(f"{prompt} {target}")) <= model.config.block_size


def thinned(questions: Sequence[Question], most: int) -> tuple[Question, ...]:
    """At most so many, at even distances."""
    step = max(1, -(-len(questions) // most))
    return tuple(questions[::step])
