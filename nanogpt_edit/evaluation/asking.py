"""Everything that is asked about a fact, prompt by prompt, of one model (see `prompt_records.py` for what is right).

Texts are written together and targets scored together, whatever the prompts ask for. A prompt that is not in the fact's
own file is made here: the prompt behind other text, and the form of a question, "Q: … A:".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanogpt_edit.data.facts import Fact
from nanogpt_edit.evaluation.prompt_records import HELD, RULES, STAYS, Kind, PromptScore, verdict_of
from nanogpt_edit.evaluation.targets import TargetScore, score_targets
from nanogpt_edit.evaluation.writing import cut_answer, written_texts
from nanogpt_edit.model.gpt import GPT

OTHER_TEXT = "It is well known that"
"""What stands before a prompt where a fact is asked for behind other text: a text's first token has a state of its own
in pretrained models, and what is written there need not hold elsewhere."""
QUESTION = "Q: {}\nA:"
WRITES = ("exact", "says", "denies")
"""The rules for which the model writes a text."""
FURTHER_TOKENS = 10  # behind the answer's own, for its sentence to end


@dataclass(frozen=True)
class Ask:
    """One prompt of a fact: what is right after the edit (`wanted`) and before (`true`), and whom that is compared with
    where it is the same before and after (`rival`)."""

    kind: Kind
    prompt: str
    wanted: str
    true: str
    rival: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers in question, each once."""
        return tuple(dict.fromkeys(answer for answer in (self.wanted, self.true, self.rival) if answer))


@dataclass(frozen=True)
class AskedState:
    """One prompt under one model."""

    ask: Ask
    scores: dict[str, TargetScore]
    """Of each of its answers."""
    text: str | None
    """What the model writes freely; None where it is only asked to choose or to recall."""

    def right(self, answer: str) -> bool:
        """Is the model right by the rule of the prompt's kind, if `answer` is?"""
        rule, text = RULES[self.ask.kind], self.text or ""
        if rule == "exact":
            return cut_answer(text, answer)[1]
        if rule == "recalls":
            return self.scores[answer].token_accuracy == 1.0
        if rule == "prefers":
            return all(
                self.scores[answer].p_token > score.p_token for other, score in self.scores.items() if other != answer
            )
        return holds(cut_answer(text, answer)[0], answer) == (rule == "says")

    def written(self, answer: str) -> str:
        """What the model writes, to the end of its sentence; or its choice at the tokens of `answer`."""
        return self.scores[answer].greedy if self.text is None else cut_answer(self.text, answer)[0]


def holds(text: str, answer: str) -> bool:
    """Does `text` hold `answer` as whole words, in any capitals? ("It is in Athens", "Athens"), not ("Athensis", …)."""
    return re.search(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", text, re.IGNORECASE) is not None


def asks_of(fact: Fact) -> Iterator[Ask]:
    """All prompts of a fact, its own first."""
    new, true = fact.target_new, fact.target_true
    yield Ask("prompt", fact.prompt, new, true)
    yield Ask("behind", behind(fact), new, true)
    yield from (Ask("paraphrase", prompt, new, true) for prompt in fact.paraphrases)
    yield from (Ask("neighbour", n.prompt, n.target_true, n.target_true, new) for n in fact.neighbourhood)
    for each in fact.asked:
        prompt = QUESTION.format(each.prompt) if each.kind == "question" else each.prompt
        rival = true if each.kind == "attribute" else ""
        known = each.target_true or (each.target_new if each.kind in STAYS else "")
        yield Ask(each.kind, prompt, each.target_new, known, rival)


def behind(fact: Fact) -> str:
    return f"{OTHER_TEXT} {fact.prompt}"


def ask_all(model: GPT, facts: Sequence[Fact]) -> tuple[tuple[AskedState, ...], ...]:
    """The state of every prompt of every fact."""
    asked = [(number, ask) for number, fact in enumerate(facts) for ask in asks_of(fact)]
    pairs = list(dict.fromkeys((ask.prompt, answer) for _, ask in asked for answer in ask.answers))
    scores = dict(zip(pairs, score_targets(model, pairs), strict=True))
    free = list(dict.fromkeys((ask.prompt, ask.answers) for _, ask in asked if RULES[ask.kind] in WRITES))
    texts = dict(zip(free, written_texts(model, free, further=FURTHER_TOKENS), strict=True))
    states: list[list[AskedState]] = [[] for _ in facts]
    for number, ask in asked:
        own = {answer: scores[ask.prompt, answer] for answer in ask.answers}
        states[number].append(AskedState(ask, own, texts.get((ask.prompt, ask.answers))))
    return tuple(map(tuple, states))


def compare_asked(
    facts: Sequence[Fact], before: Sequence[Sequence[AskedState]], after: Sequence[Sequence[AskedState]]
) -> tuple[PromptScore, ...]:
    """The records of an edit from the states of its facts' prompts before and after it."""
    return tuple(
        _compared(number, fact, first, second)
        for number, (fact, *states) in enumerate(zip(facts, before, after, strict=True))
        for first, second in zip(*states, strict=True)
    )


def _compared(number: int, fact: Fact, before: AskedState, after: AskedState) -> PromptScore:
    ask = before.ask
    right_before = ask.true if ask.true and ask.kind in (*HELD, *STAYS) else ask.wanted
    return PromptScore(
        fact=number,
        id=fact.id,
        kind=ask.kind,
        prompt=ask.prompt,
        wanted=ask.wanted,
        true=ask.true,
        knew=before.right(ask.true) if ask.true else None,
        p_before=before.scores[ask.wanted].p_target,
        p_after=after.scores[ask.wanted].p_target,
        rank_before=before.scores[ask.wanted].rank,
        rank_after=after.scores[ask.wanted].rank,
        written_before=before.written(ask.wanted),
        written_after=after.written(ask.wanted),
        verdict=verdict_of(before.right(right_before), after.right(ask.wanted)),
    )
