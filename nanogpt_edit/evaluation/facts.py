"""What a model knows: is the target of a fact the greedy continuation of its prompt, and how probable is it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nanogpt_edit.common.records import read_jsonl_as
from nanogpt_edit.common.stats import Interval, share
from nanogpt_edit.evaluation.targets import score_targets
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


@dataclass(frozen=True)
class Recall:
    """Does the model continue `prompt` with `target`? One line of `eval/<stage>_facts.jsonl`."""

    group: str  # which set of facts: recall, recall_edited, edited
    subject: str
    prompt: str
    target: str
    greedy: str  # the model's continuation, as many tokens as the target has
    rank: int  # of the target's first token; 1 is the most probable
    p_first: float
    p_target: float  # of the whole target
    recalled: bool  # greedy decoding writes the target


def read_recalls(path: Path) -> list[Recall]:
    """Read `eval/<stage>_facts.jsonl`. Raises UserError naming file, line and field of what is not a recall."""
    return read_jsonl_as(Recall, path)


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
