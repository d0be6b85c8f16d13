"""What the playground offers to try: chosen by what was measured, of a run in its records, of a model by asking it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.fact_files import fact_to_record, read_facts
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.evaluation.targets import score_targets
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.report.examples import Example, is_clean, problem_examples
from nanogpt_edit.report.labels import stage_label
from nanogpt_edit.report.read import read_run
from nanogpt_edit.report.run import Run
from nanogpt_edit.serving.playground.elsewhere import fits
from nanogpt_edit.serving.playground.twin import twin

NAME = re.compile(r"\b[A-Z0-9]\w*(?:(?: of| the| and)*[ '’-]+[A-Z0-9]\w*)*")
ARTICLES = ("The ", "A ", "An ", "In ", "Of ", "Who ", "What ", "Where ", "It ")
MOST_FACTS, MOST_PROBLEMS = 4, 3
CHAT = "What is the capital of France?"


@dataclass(frozen=True)
class Prompt:
    """A prompt to try, and why it was chosen."""

    prompt: str
    why: str
    form: str = "text"
    """text (to go on with) or chat (a message)."""


def read_if_whole(folder: Path) -> Run | None:
    """What a run has measured; None where it is under way and a file is not there yet, or another version's."""
    try:
        return read_run(folder)
    except UserError:
        return None


def facts_to_try(model: GPT | None, run: Run | None) -> list[tuple[Fact, str]]:
    """Packaged facts that the model knows, each of another relation, and what was measured of each."""
    facts = read_facts("facts50")
    told = {} if run is None else _of_run(run)
    if not told and model is not None:
        told = _known(model, facts)
    known, by_relation = {fact.id: fact for fact in facts}, dict[str, tuple[Fact, str]]()
    for name, why in told.items():
        if name in known:
            by_relation.setdefault(known[name].relation, (known[name], why))
    return list(by_relation.values())[:MOST_FACTS] or [(fact, "") for fact in facts[:MOST_FACTS]]


def facts_to_trace(facts: Sequence[tuple[Fact, str]], run: Run | None) -> list[tuple[Fact, str]]:
    """The fact whose answer the run's own trace lost most when its subject was corrupted, before the others."""
    if run is None or run.trace is None:
        return list(facts)
    prompt = "".join(run.trace.example.tokens).strip()
    first = [(fact, "lost most with its subject in noise") for fact in read_facts("facts50") if fact.prompt == prompt]
    return first + [pair for pair in facts if pair[0].prompt != prompt]


def _of_run(run: Run) -> dict[str, str]:
    """Fact id -> what came of it, of those that the run's own edit wrote without harm, the surest first."""
    scores = () if run.edit is None else run.edit.scores.records
    clean = [each for each in scores if each.known and each.right and is_clean(each)]
    clean.sort(key=lambda each: -each.p_target_after)
    return {each.id: f"known before; p(new) {each.p_target_after:.0%} in the run's own edit" for each in clean}


def _known(model: GPT, facts: Sequence[Fact]) -> dict[str, str]:
    """Fact id -> how sure the model is of its true answer, of those that it would say, the surest first."""
    readable = [fact for fact in facts if fits(model, fact.prompt, fact.target_true)]
    scores = score_targets(twin(model), [(fact.prompt, fact.target_true) for fact in readable])
    pairs = sorted(zip(readable, scores, strict=True), key=lambda pair: -pair[1].p_target)
    return {
        fact.id: f"the model gives {fact.target_true} p = {score.p_target:.0%} before any edit"
        for fact, score in pairs
        if score.rank == 1
    }


def prompts_to_try(facts: Sequence[tuple[Fact, str]], run: Run | None, *, chats: bool) -> list[Prompt]:
    """What Ask offers: of a run problems where its last training step gained most, lost most, and one that none can
    do; and prompts of facts that the model knows."""
    own = [] if run is None else [_problem(each) for each in problem_examples(run, per_kind=1)[:MOST_PROBLEMS]]
    chat = [Prompt(CHAT, "a message, through the model's chat template", form="chat")] if chats and run is None else []
    return [*own, *chat, *(Prompt(fact.prompt, why) for fact, why in facts[:2])]


def _problem(found: Example) -> Prompt:
    right = ", ".join(f"{stage_label(side.stage)} {side.right} of {side.samples}" for side in found.sides)
    return Prompt(found.prompt, f"{found.kind}; answer {found.gold}; right: {right}")


def as_record(fact: Fact, why: str) -> Mapping[str, object]:
    """A fact as the page takes it."""
    return {**fact_to_record(fact), "why": why}


def likely_subject(prompt: str) -> str:
    """What a prompt is probably about: its last name, without the article that begins the sentence.

    "The capital of Egypt is" -> "Egypt"; "The Eiffel Tower is located in" -> "Eiffel Tower"; "" where there is none.
    """
    for article in ARTICLES:
        if prompt.startswith(article):
            prompt = prompt.removeprefix(article)
            break
    found = NAME.findall(prompt)
    return found[-1].strip() if found else ""
