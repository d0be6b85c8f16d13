"""The first screen of a report: in a few sentences and a few examples, what a run changed and what that cost.

The sentences are put together from the ledger and the edit's scores, the examples chosen by a stated rule: where
problems were learned, the one that gained most; of the edited facts the first clean success (one that the model knew
before, if there is one) and the first failure; and the first other fact that the last step lost. Three of them at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanogpt_edit.common.reasoning import parse
from nanogpt_edit.editing.records import Edit, FactScore
from nanogpt_edit.report import labels
from nanogpt_edit.report.examples import is_clean, problem_examples
from nanogpt_edit.report.ledger import Ledger, Row
from nanogpt_edit.report.run import Run

MOST_CHANGES = 3


@dataclass(frozen=True, slots=True)
class Change:
    """One prompt before and after. `role` is good, bad or unsure."""

    title: str
    role: str
    prompt: str
    before: tuple[str, str]
    """(checkpoint, what it writes)."""
    after: tuple[str, str]


def sentences(run: Run, ledger: Ledger) -> list[str]:
    """What was changed, how far it took hold, what it cost: a sentence each."""
    rows = [row for row in ledger.rows if row.before]
    if not rows and run.edit is None:
        return ["Nothing was changed: this run measures one model."] if run.stages else []
    learned, edited = [row for row in rows if row.stage != "edited"], [row for row in rows if row.stage == "edited"]
    told = [*_learned(run), *_costs(learned)]
    if run.edit is not None:
        told += [_took_hold(run.edit), *_known(run.edit), *_costs(edited)]
    return told


def _learned(run: Run) -> Iterator[str]:
    """'Of the problems base solves 0.0% at the first try, SFT 40.5% and GRPO 47.4%.'"""
    solved = {
        name: stage.metrics["problems"]["pass_at_1"].value
        for name, stage in run.stages.items()
        if name != "edited" and "pass_at_1" in stage.metrics.get("problems", {})
    }
    if len(solved) > 1:
        by_stage = [f"{labels.stage_label(name)} {labels.percent(share)}" for name, share in solved.items()]
        yield f"Problems solved at the first try: {labels.listing(by_stage)}."


def _costs(rows: Sequence[Row]) -> Iterator[str]:
    """'SFT cost … and GRPO ….'; that nothing could be shown, where no step cost anything that could be."""
    costs = [f"{row.step} cost {labels.listing(row.cost)}" for row in rows if row.cost]
    if costs:
        yield "; ".join(costs) + "."
    elif rows:
        yield f"{labels.listing([row.step for row in rows])} cost nothing that could be shown."


def _took_hold(edit: Edit) -> str:
    """'Of 50 facts written at once, 49 have the new answer as the model's first choice and 43 are written exactly.'"""
    scores = edit.scores
    told = (
        f"Of {labels.count(edit.n, 'fact')} written at once, {_successes(scores.records)} have their new answer as the"
    )
    told += " model's first choice"
    if scores.exact is not None:
        told += f", and {sum(each.exact is True for each in scores.records)} are exactly what it writes freely"
    if scores.paraphrase_rank1 is not None:
        told += f"; on paraphrases the new answer comes first in {labels.percent(scores.paraphrase_rank1.value)}"
    return told + "."


def _known(edit: Edit) -> Iterator[str]:
    """How many of the facts the model knew before, and what came of these and of the others."""
    known, unknown = ([each for each in edit.scores.records if each.known is state] for state in (True, False))
    if known and unknown:
        yield (
            f"Before, the model knew {len(known)} of them (the true answer was its first choice) and did not know "
            f"{len(unknown)}: {_successes(known)} of the known and {_successes(unknown)} of the unknown took the new "
            "answer."
        )
    elif known or unknown:
        yield f"Before, the model knew {'all' if known else 'none'} of them."


def _successes(facts: Sequence[FactScore]) -> int:
    return sum(fact.success for fact in facts)


def changes(run: Run) -> list[Change]:
    """Up to three prompts before and after, chosen by the rule above."""
    learned, rewritten, lost = list(_gained(run)), list(_rewritten(run)), list(_lost(run))
    kept = [*learned[:1], *rewritten[: 1 if learned and lost else 2], *lost[:1]]
    return kept[:MOST_CHANGES]


def _gained(run: Run) -> Iterator[Change]:
    for example in problem_examples(run):
        first, last = example.sides[0], example.sides[-1]
        wrong = next((each for each in first.shown if not each.correct), None)
        right = next((each for each in last.shown if each.correct), None)
        if last.stage != "edited" and wrong and right and last.right > first.right:
            title = f"A problem: {first.right} of {first.samples} right before, {last.right} of {last.samples} after"
            yield Change(
                title,
                "good",
                example.prompt,
                _said(first.stage, _untagged(wrong.text)),
                _said(last.stage, _untagged(right.text)),
            )


def _rewritten(run: Run) -> Iterator[Change]:
    """The first clean success, one that was known first; then the first failure, or else the next success."""
    if run.edit is None:
        return
    stages = [name for name in run.stages if name != "edited"]
    successes = [fact for fact in run.edit.scores.records if fact.right and is_clean(fact)]
    successes.sort(key=lambda fact: (fact.rank_before == 1, fact.known is not True))
    failures = [fact for fact in run.edit.scores.records if not fact.success]
    others = [fact for fact in successes if fact.known != successes[0].known] or successes[1:]
    for fact in [*successes[:1], *(failures or others)[:1]]:
        knew = "" if fact.known is None else " it knew" if fact.known else " it did not know"
        yield Change(
            f"A fact{knew}, {'rewritten' if fact.success else 'not rewritten'}",
            "good" if fact.success else "bad",
            fact.prompt,
            _said(stages[-1] if stages else "before", fact.old_answer),
            _said("edited", fact.new_answer),
        )


def _lost(run: Run) -> Iterator[Change]:
    """Other facts that the last checkpoint no longer recalls."""
    if len(run.stages) < 2:
        return
    before, after = list(run.stages.values())[-2:]
    now = {fact.prompt: fact for fact in after.recalls if fact.group == "recall"}
    for fact in before.recalls:
        if fact.group == "recall" and fact.recalled and fact.prompt in now and not now[fact.prompt].recalled:
            told = _said(before.stage, fact.greedy), _said(after.stage, now[fact.prompt].greedy)
            yield Change("What it cost: another fact, lost", "bad", fact.prompt, *told)


def _untagged(completion: str) -> str:
    """A completion for a reader in a hurry: '3 + 4 = 7 → 7'; one that is not well-formed as it stands."""
    parsed = parse(completion)
    return f"{parsed.thinking} → {parsed.answer}" if parsed.well_formed else completion


def _said(stage: str, text: str) -> tuple[str, str]:
    return labels.stage_label(stage), " ".join(text.split())
