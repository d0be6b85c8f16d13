"""Does a prompt that has nothing to do with arithmetic get an arithmetic answer?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nanogpt_edit.common.reasoning import TAGS
from nanogpt_edit.common.stats import Interval, share
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.evaluation.answers import extract
from nanogpt_edit.evaluation.records import EvalRecord

# What a model of word problems makes of other questions (the prompts of the earlier system's report, and a few more).
ASKED = (
    "What is the capital of France?",
    "Who wrote Romeo and Juliet?",
    "Why is the sky blue?",
    "How does photosynthesis work?",
    "If all dogs are animals, and Buddy is a dog, what is Buddy?",
    "Write a haiku about the ocean.",
    "What would happen if the moon disappeared?",
    "The history of the internet began in",
    "Once upon a time, there was a",
    "The Eiffel Tower is located in",
    "The best way to learn a language is",
    "My favourite colour is",
)
PROBES = tuple(Problem(question=text, rationale="", answer="", id=f"probe-{i}") for i, text in enumerate(ASKED))
EQUATION_SIGNS = frozenset("=+*/")


def probe_metrics(records: Sequence[EvalRecord]) -> dict[str, Interval]:
    """Share of completions that do not turn to arithmetic, over prompts."""
    return {"non_arithmetic": share(list(non_arithmetic(records).values()))}


def non_arithmetic(records: Sequence[EvalRecord]) -> dict[str, float]:
    """prompt -> share of its completions that do not turn to arithmetic."""
    answers: dict[str, list[bool]] = {}
    for record in records:
        answers.setdefault(record.problem_id, []).append(not is_arithmetic(record.text))
    return {prompt: float(np.mean(own)) for prompt, own in answers.items()}


def is_arithmetic(text: str) -> bool:
    """Does a completion turn to arithmetic: an equation, or nothing but a number for an answer?"""
    found = extract(text)
    for tag in TAGS:  # their slash is no division
        text = text.replace(tag, " ")
    return bool(EQUATION_SIGNS & set(text)) or (found.strict is not None and found.strict.strip().isdigit())
