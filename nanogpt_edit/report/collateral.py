"""What a step did beside what it was for: problems that it turned, and facts that it moved without being asked to.

A problem counts as right where more than half of its samples are, as wrong where fewer than half are, both checkpoints
on the same number of samples; where none were asked, simple arithmetic stands in. Facts are those that an edit is to
leave alone, and the true facts that every checkpoint is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from nanogpt_edit.evaluation.prompt_records import most_moved
from nanogpt_edit.evaluation.records import EvalRecord, Evaluation, Recall
from nanogpt_edit.report.examples import Example, Side, samples_of, share_right
from nanogpt_edit.report.ledger import STEPS
from nanogpt_edit.report.run import Run

MOST_TURNED = 6
"""Problems of a step that are shown with their text."""
MOST_MOVED = 60


@dataclass(frozen=True, slots=True)
class Turned:
    """Problems that a step turned right, or turned wrong: how many, and those that changed most."""

    title: str
    role: str
    """good or bad."""
    shown: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class MovedFact:
    """A fact that was to stay: what was written and how probable the right answer was, before an edit and after."""

    prompt: str
    right: str
    before: str
    right_before: bool
    after: str
    right_after: bool
    p_before: float
    p_after: float

    @property
    def lost(self) -> bool:
        return self.right_before and not self.right_after


def turned(run: Run) -> list[Turned]:
    """For every step what it turned wrong, then what it turned right."""
    found = []
    for before, after in pairwise(run.stages.values()):
        for skill in ("problems", "arithmetic"):
            sides = _paired(before, after, skill)
            if sides:
                found += [_turned(before.stage, after.stage, sides, skill, right=right) for right in (False, True)]
                break
    return found


Pair = tuple[Sequence[EvalRecord], Sequence[EvalRecord]]


def _paired(before: Evaluation, after: Evaluation, skill: str) -> Mapping[str, Pair]:
    """The completions of both checkpoints of every problem that both were asked, as many of the one as of the other."""
    old, new = samples_of(before, skill), samples_of(after, skill)
    samples = {problem: min(len(old[problem]), len(new[problem])) for problem in old if problem in new}
    return {problem: (old[problem][:n], new[problem][:n]) for problem, n in samples.items()}


def _turned(before: str, after: str, sides: Mapping[str, Pair], skill: str, *, right: bool) -> Turned:
    shares = {problem: (share_right(old), share_right(new)) for problem, (old, new) in sides.items()}
    sign = 1 if right else -1
    changed = [problem for problem, (was, now) in shares.items() if sign * (was - 0.5) < 0 < sign * (now - 0.5)]
    changed.sort(key=lambda problem: sign * (shares[problem][0] - shares[problem][1]))
    noun = "problems" if skill == "problems" else "sums"
    how_many = f"{len(changed):,}" if changed else "none"
    return Turned(
        title=f"{STEPS.get(after, after)} turned {how_many} of {len(sides):,} {noun} {'right' if right else 'wrong'}",
        role="good" if right else "bad",
        shown=tuple(_example(before, after, sides[problem], right=right) for problem in changed[:MOST_TURNED]),
    )


def _example(before: str, after: str, pair: Pair, *, right: bool) -> Example:
    """Of each side one completion of the kind that made it count as right or wrong."""
    sides = []
    for stage, completions, wanted in ((before, pair[0], not right), (after, pair[1], right)):
        typical = next(each for each in completions if each.correct == wanted)
        sides.append(Side(stage, sum(each.correct for each in completions), len(completions), (typical,)))
    return Example(kind="", prompt=pair[0][0].prompt, gold=pair[0][0].gold, sides=tuple(sides))


def moved_facts(run: Run) -> list[MovedFact]:
    """Facts that the edit was to leave alone: the answers lost first, then by how far the right one's p moved."""
    if run.edit is None:
        return []
    asked = [
        MovedFact(
            prompt=each.prompt,
            right=each.true or each.wanted,
            before=each.written_before,
            right_before=each.right_before,
            after=each.written_after,
            right_after=each.right_after,
            p_before=each.p_before,
            p_after=each.p_after,
        )
        for each in most_moved(run.edit.scores.prompts)
    ]
    by_prompt = {each.prompt: each for each in (*_recalled(run), *asked) if each.p_before != each.p_after}
    found = sorted(by_prompt.values(), key=lambda each: (not each.lost, -abs(each.p_after - each.p_before)))
    return found[:MOST_MOVED]


def _recalled(run: Run) -> list[MovedFact]:
    """The true facts that the checkpoint before the edit and the edited one were both asked for."""
    if run.edited_from is None:
        return []
    before, after = (_true_facts(run.stages[name].recalls) for name in (run.edited_from, "edited"))
    return [
        MovedFact(
            prompt=prompt,
            right=old.target,
            before=old.greedy,
            right_before=old.recalled,
            after=after[prompt].greedy,
            right_after=after[prompt].recalled,
            p_before=old.p_target,
            p_after=after[prompt].p_target,
        )
        for prompt, old in before.items()
        if prompt in after
    ]


def _true_facts(recalls: Sequence[Recall]) -> dict[str, Recall]:
    return {each.prompt: each for each in recalls if each.group == "recall"}
