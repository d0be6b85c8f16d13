"""What a model knows: is the target of a fact the greedy continuation of its prompt, and how probable is it?

`recall` asks one target of each prompt, for the ledger. `measure_facts` asks all of a fact that is to be edited (old
and new answer, other phrasings, neighbours), and all of its further prompts (`asking.py`) if one wants. Both rest on
the scores of `targets.py`, and so on the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from nanogpt_edit.common.errors import UserError, quoted
from nanogpt_edit.common.stats import Interval, share
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.evaluation.asking import AskedState, ask_all, behind
from nanogpt_edit.evaluation.records import Recall
from nanogpt_edit.evaluation.targets import TargetScore, score_targets
from nanogpt_edit.evaluation.writing import cut_answer, free_texts, ngram_entropy, written_answers
from nanogpt_edit.model.gpt import GPT

FACT_GROUPS = ("recall", "recall_edited", "edited")
"""Sets of facts: true ones that no edit touches, the true answers to the edited ones, the new answers to them."""


@dataclass(frozen=True)
class Question:
    """A prompt whose continuation is known."""

    group: str
    subject: str
    prompt: str
    target: str


def recall(model: GPT, questions: Sequence[Question]) -> list[Recall]:
    """Rank and probability of each question's target, and what greedy decoding would write in its place."""
    scores = score_targets(model, [(question.prompt, question.target) for question in questions])
    return [
        Recall(
            **asdict(question),
            greedy=score.greedy,
            rank=score.rank,
            p_first=score.p_first,
            p_target=score.p_target,
            recalled=score.token_accuracy == 1.0,
        )
        for question, score in zip(questions, scores, strict=True)
    ]


def fact_metrics(recalls: Sequence[Recall]) -> dict[str, Interval]:
    """Share recalled in each group, over subjects."""
    return {group: share(list(values.values())) for group, values in recalled_by_subject(recalls).items()}


def recalled_by_subject(recalls: Sequence[Recall]) -> dict[str, dict[str, float]]:
    """group -> subject -> share recalled of its questions, subjects in order of appearance."""
    groups: dict[str, dict[str, list[bool]]] = {}
    for each in recalls:
        groups.setdefault(each.group, {}).setdefault(each.subject, []).append(each.recalled)
    return {
        group: {subject: float(np.mean(own)) for subject, own in subjects.items()} for group, subjects in groups.items()
    }


@dataclass(frozen=True)
class FactState:
    """One fact under one model: `paraphrases` and `neighbourhood` hold (wanted, other) targets per prompt."""

    new: TargetScore
    true: TargetScore
    paraphrases: tuple[tuple[TargetScore, TargetScore], ...]
    neighbourhood: tuple[tuple[TargetScore, TargetScore], ...]
    answer: str
    """What the model writes freely, greedily, to the end of the sentence."""
    exact: bool = False
    """The answer is the new one, with its natural end and nothing added."""
    behind: TargetScore | None = None
    """The new answer after the prompt behind other text (`asking.OTHER_TEXT`); None: not asked."""
    entropy: float | None = None
    """n-gram entropy of a text the model writes after the prompt, in bits (see `ngram_entropy`); None: not asked."""
    asked: tuple[AskedState, ...] = ()
    """The state of each of its prompts, further ones included; empty: not asked."""


@progress("measuring facts")
def measure_facts(
    model: GPT, facts: Sequence[Fact], *, fluency: bool = False, asked: bool = False
) -> tuple[FactState, ...]:
    """The state of every fact in `model`; `fluency` lets the model write on after each prompt, for the entropy, and
    `asked` lets it answer every prompt there is, in its own words (see `asking.py`).

    Raises UserError for a fact without a true answer: nothing could be compared with the new one.
    """
    for fact in facts:
        if not all(answer.strip() for answer in (fact.target_true, *(n.target_true for n in fact.neighbourhood))):
            raise UserError(f"{quoted(fact.prompt)} has no true answer (target_true) to compare with; fill it in.")
    states = ask_all(model, facts) if asked else ((),) * len(facts)
    wanted = [] if asked else [pair for fact in facts for pair in _pairs(fact)]
    scores = dict(zip(wanted, score_targets(model, wanted), strict=True))
    scores |= {(each.ask.prompt, answer): s for own in states for each in own for answer, s in each.scores.items()}
    answers = _answers(facts, states) if asked else written_answers(model, [(f.prompt, f.target_new) for f in facts])
    texts = free_texts(model, [fact.prompt for fact in facts]) if fluency else []
    entropies: list[float | None] = [ngram_entropy(text) for text in texts]
    return tuple(
        FactState(
            new=scores[fact.prompt, fact.target_new],
            true=scores[fact.prompt, fact.target_true],
            paraphrases=tuple((scores[p, fact.target_new], scores[p, fact.target_true]) for p in fact.paraphrases),
            neighbourhood=tuple(
                (scores[n.prompt, n.target_true], scores[n.prompt, fact.target_new]) for n in fact.neighbourhood
            ),
            answer=answer,
            exact=exact,
            behind=scores[behind(fact), fact.target_new],
            entropy=entropy,
            asked=own,
        )
        for fact, (answer, exact), entropy, own in zip(
            facts, answers, entropies or [None] * len(facts), states, strict=True
        )
    )


def _answers(facts: Sequence[Fact], states: Sequence[Sequence[AskedState]]) -> list[tuple[str, bool]]:
    """As `written_answers`, of what was written when every prompt was asked: the first is a fact's own."""
    return [cut_answer(own[0].text or "", fact.target_new) for fact, own in zip(facts, states, strict=True)]


def _pairs(fact: Fact) -> list[tuple[str, str]]:
    """Every prompt with every target that is asked of it."""
    both = (fact.target_new, fact.target_true)
    own = [(prompt, target) for prompt in (fact.prompt, *fact.paraphrases) for target in both]
    own.append((behind(fact), fact.target_new))
    return own + [(n.prompt, target) for n in fact.neighbourhood for target in (n.target_true, fact.target_new)]
