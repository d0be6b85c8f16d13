"""Which raw records a reader sees: chosen by a stated rule from all of them, never by hand.

Problems: where the last step gained most and lost most, and some that both or neither solve; of every checkpoint the
first right and the first wrong completion. Prompts: the first sample of every checkpoint, side by side. Facts: those
the first checkpoint recalled and a later one does not. Edits: failures first, grouped by reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nanogpt_edit.editing.records import FactScore
from nanogpt_edit.evaluation.records import EvalRecord, Evaluation
from nanogpt_edit.report import labels
from nanogpt_edit.report.run import Run


@dataclass(frozen=True, slots=True)
class Side:
    """One checkpoint on one prompt: `right` of `samples` completions are right; some of them are shown."""

    stage: str
    right: int
    samples: int
    shown: tuple[EvalRecord, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with what the checkpoints answered. `kind` says why it was chosen, `graded` if right and wrong are
    told apart by the answer's form, which some checkpoint has learned."""

    kind: str
    prompt: str
    gold: str
    sides: tuple[Side, ...]
    graded: bool = True


@dataclass(frozen=True, slots=True)
class LostFact:
    """A fact the first checkpoint recalled; `answers`: each later one's greedy answer, and if right."""

    prompt: str
    target: str
    answers: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class FactGroup:
    """Edited facts that ended alike."""

    title: str
    kind: str
    facts: tuple[FactScore, ...]


def problem_examples(run: Run, *, per_kind: int = 2) -> list[Example]:
    """Problems where the last step gained, lost, and where both or neither are right."""
    learned = [name for name in run.stages if name != "edited"]
    chosen = learned[-2:] if len(learned) > 1 else list(run.stages)[-2:]
    sides = {name: samples_of(run.stages[name], "problems") for name in chosen}
    shared = (
        [problem for problem in sides[chosen[0]] if all(problem in side for side in sides.values())] if sides else []
    )
    share = {problem: [share_right(side[problem]) for side in sides.values()] for problem in shared}
    examples = []
    for kind, keep, order in _kinds(chosen):
        found = sorted(
            (problem for problem in shared if keep(share[problem])), key=lambda p: (order(share[p]), shared.index(p))
        )
        for problem in found[:per_kind]:
            examples.append(
                _example(kind, {name: side[problem] for name, side in sides.items()}, show=_one_right_one_wrong)
            )
    return examples


Shares = Sequence[float]


def _kinds(chosen: list[str]) -> list[tuple[str, Callable[[Shares], bool], Callable[[Shares], float]]]:
    """(why, which problems, in which order); shares are those of the first and last checkpoint."""
    last = labels.stage_label(chosen[-1]) if chosen else ""
    if len(chosen) < 2:
        return [
            ("Always right", lambda s: s[-1] == 1, lambda s: 0.0),
            ("Sometimes right", lambda s: 0 < s[-1] < 1, lambda s: abs(s[-1] - 0.5)),
            ("Never right", lambda s: s[-1] == 0, lambda s: 0.0),
        ]
    return [
        (f"{last} gained most", lambda s: s[-1] > s[0], lambda s: s[0] - s[-1]),
        (f"{last} lost most", lambda s: s[-1] < s[0], lambda s: s[-1] - s[0]),
        ("Solved by neither", lambda s: s[0] == s[-1] == 0, lambda s: 0.0),
        ("Solved by both", lambda s: s[0] == s[-1] == 1, lambda s: 0.0),
    ]


def prompt_examples(run: Run, skill: str, *, limit: int) -> list[Example]:
    """The first sample of every checkpoint on each prompt of a skill."""
    sides = {name: samples for name, stage in run.stages.items() if (samples := samples_of(stage, skill))}
    prompts = list(dict.fromkeys(problem for samples in sides.values() for problem in samples))
    found = (
        _example(
            "", {name: samples[problem] for name, samples in sides.items() if problem in samples}, show=lambda c: c[:1]
        )
        for problem in prompts[:limit]
    )
    return [replace(example, graded=bool(example.gold) and run.writes_answers(skill)) for example in found]


def samples_of(stage: Evaluation, skill: str) -> Mapping[str, list[EvalRecord]]:
    """Completions of one skill by problem, in the order of the file."""
    found: dict[str, list[EvalRecord]] = {}
    for completion in stage.records:
        if completion.skill == skill:
            found.setdefault(completion.problem_id, []).append(completion)
    return found


def share_right(completions: Sequence[EvalRecord]) -> float:
    return sum(completion.correct for completion in completions) / len(completions)


def _example(
    kind: str,
    sides: Mapping[str, list[EvalRecord]],
    *,
    show: Callable[[list[EvalRecord]], Sequence[EvalRecord]],
) -> Example:
    first = next(iter(sides.values()))[0]
    shown = (
        Side(name, sum(c.correct for c in completions), len(completions), tuple(show(completions)))
        for name, completions in sides.items()
    )
    return Example(kind=kind, prompt=first.prompt, gold=first.gold, sides=tuple(shown))


def _one_right_one_wrong(completions: list[EvalRecord]) -> list[EvalRecord]:
    right = [completion for completion in completions if completion.correct]
    wrong = [completion for completion in completions if not completion.correct]
    return right[:1] + wrong[:1]


def lost_facts(run: Run) -> tuple[tuple[str, ...], list[LostFact]]:
    """(names of the later checkpoints, true facts that the first one recalled and at least one of them does not).

    Facts that the edit rewrote are meant to be lost; they are not among the true ones.
    """
    recalled = {
        stage.stage: {fact.prompt: fact for fact in stage.recalls if fact.group == "recall"}
        for stage in run.stages.values()
    }
    recalled = {name: facts for name, facts in recalled.items() if facts}
    if len(recalled) < 2:
        return (), []
    first, *later = recalled.values()
    lost = []
    for prompt, fact in first.items():
        answers = [facts[prompt] for facts in later if prompt in facts]
        if fact.recalled and len(answers) == len(later) and not all(answer.recalled for answer in answers):
            lost.append(LostFact(prompt, fact.target, tuple((a.greedy, a.recalled) for a in answers)))
    return tuple(recalled)[1:], lost


def edit_groups(facts: Sequence[FactScore]) -> list[FactGroup]:
    """Failures by reason (the commonest first), then the half and the costly successes, then the clean ones."""
    failed: dict[str, list[FactScore]] = {}
    for fact in facts:
        if not fact.success:
            failed.setdefault(_kind_of_failure(fact.reason), []).append(fact)
    groups = [
        FactGroup(f"Failed: {reason}", "bad", tuple(group))
        for reason, group in sorted(failed.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    half = [fact for fact in facts if fact.success and not fact.right]
    costly = [fact for fact in facts if fact.right and not is_clean(fact)]
    clean = [fact for fact in facts if fact.right and is_clean(fact)]
    if half:
        groups.append(
            FactGroup(
                "The new answer's first token is first, but what is written is not exactly it",
                "bad",
                tuple(half),
            )
        )
    if costly:
        groups.append(FactGroup("Rewritten, but a paraphrase or a neighbour is wrong", "unsure", tuple(costly)))
    if clean:
        groups.append(FactGroup("Rewritten, paraphrases and neighbours right", "good", tuple(clean)))
    return groups


def _kind_of_failure(reason: str) -> str:
    """The general part of a reason, before its figures: 'no value found: the optimisation …' -> 'no value found'."""
    return re.split(r"[:;(]", reason)[0].strip(" ,") or "the new answer is not first"


def is_clean(fact: FactScore) -> bool:
    """Do paraphrases hold, and has no neighbour been lost?"""
    paraphrases_hold = fact.paraphrase_success is None or fact.paraphrase_success == 1
    before, after = fact.neighbourhood_before, fact.neighbourhood_after
    return paraphrases_hold and (before is None or after is None or after >= before)
