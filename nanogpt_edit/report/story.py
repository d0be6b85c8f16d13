"""The first screen of a report: in five sentences and a few examples, what a run changed and what that cost.

The sentences are put together from the ledger and the edit's scores, so that every number in them stands in a table
below too. The examples are chosen by a stated rule: where problems were learned, the one that gained most; of the
edited facts the first clean success (one that the model knew before, if there is one) and the first failure; and the
first other fact that the last step lost. Three of them at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nanogpt_edit.common.reasoning import parse
from nanogpt_edit.editing.records import Edit, FactScore
from nanogpt_edit.report import labels
from nanogpt_edit.report.examples import is_clean, problem_examples
from nanogpt_edit.report.ledger import Ledger, Row
from nanogpt_edit.report.run import Run
from nanogpt_edit.report.summary import Summary

MOST_CHANGES = 3
MOST_STAGES = 3
"""Stages that are named with their seconds."""


@dataclass(frozen=True, slots=True)
class Told:
    """A sentence, and in a word what it is about."""

    head: str
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """One prompt before and after. `role` is good, bad or unsure."""

    title: str
    role: str
    prompt: str
    before: tuple[str, str]
    """(checkpoint, what it writes)."""
    after: tuple[str, str]


def sentences(run: Run, summary: Summary) -> list[Told]:
    """What was taught, gained, edited, what it cost, and how long it took: a sentence each, as far as there is one."""
    told = [Told("Taught", _taught(run))]
    learned = [row for row in summary.ledger.rows if row.stage != "edited"]
    told += [Told("Gained", sentence) for sentence in _gained_by(summary.ledger, learned)]
    told += [Told("Edited", _took_hold(run.edit))] if run.edit is not None else []
    told += [Told("Cost", sentence) for sentence in _costs([row for row in summary.ledger.rows if row.before])]
    return told + [Told("Took", sentence) for sentence in _took(summary.seconds, _machine(run))]


def _taught(run: Run) -> str:
    """'A model of 1.03 M parameters was pretrained, then taught to reason by SFT and GRPO.'"""
    parameters = run.environment.get("parameters")
    size = f" of {parameters / 1e6:.3g} M parameters" if isinstance(parameters, int | float) else ""
    model = f"A model{size}" + (f", taken from {run.source}," if run.source else "")
    steps = ["pretrained"] if "pretrain" in run.logs else []
    by = [name for key, name in (("sft", "SFT"), ("grpo", "GRPO")) if key in run.logs or key in run.stages]
    steps += [f"taught to reason by {labels.listing(by)}"] if by else []
    if steps:
        return f"{model} was {', then '.join(steps)}."
    return f"{model} was taught nothing" + (" before its facts were edited." if run.edit else ": it was measured.")


def _gained_by(ledger: Ledger, rows: Sequence[Row]) -> Iterator[str]:
    """'At the first try base solves 0.0% of the problems, SFT 40.5% (better) and GRPO 47.4% (better).'"""
    firsts = ("pass_at_1", "flexible_pass_at_1")
    place = next(
        (place for place, (skill, name) in enumerate(ledger.columns) if skill == "problems" and name in firsts), None
    )
    if place is None or len(rows) < 2:
        return
    metric = ledger.columns[place][1]
    solved: list[str] = []
    for row in rows:
        cell = row.cells[place]
        if cell is not None:
            verb = "" if solved else " solves"
            verdict = f" ({cell.verdict})" if cell.verdict and cell.verdict != "untested" else ""
            solved.append(
                f"{labels.stage_label(row.stage)}{verb} {labels.quantity(metric, cell.value.value)}" + verdict
            )
    if len(solved) > 1:
        solved[0] += " of the problems"
        yield f"At the first try {labels.listing(solved)}."


def _costs(rows: Sequence[Row]) -> Iterator[str]:
    """'SFT cost … and GRPO ….'; that nothing could be shown, where no step cost anything that could be."""
    costs = [f"{row.step} cost {labels.listing(row.cost)}" for row in rows if row.cost]
    if costs:
        yield "; ".join([costs[0], *(cost.replace("The edit", "the edit", 1) for cost in costs[1:])]) + "."
    elif rows:
        yield f"{labels.listing([row.step for row in rows])} cost nothing that could be shown."


def _machine(run: Run) -> str:
    """'AMD EPYC, 2 threads'; empty where it is not recorded."""
    environment = run.environment
    machine = [str(environment[key]) for key in ("cpu", "device") if environment.get(key) not in (None, "", "cpu")]
    machine += [labels.count(int(str(environment["threads"])), "thread")] if environment.get("threads") else []
    return ", ".join(machine)


def _took(seconds: Mapping[str, float], machine: str) -> Iterator[str]:
    """'6 min 37 s in all (AMD EPYC, 2 threads), most of them for GRPO (1 min 52 s), SFT (1 min 42 s) and …'"""
    if "total" not in seconds:
        return
    longest = sorted((name for name in seconds if name != "total"), key=lambda name: -seconds[name])[:MOST_STAGES]
    named = [f"{labels.timed_label(name)} ({labels.duration(seconds[name])})" for name in longest]
    where = f" on {machine}" if machine else ""
    yield f"{labels.duration(seconds['total'])} in all{where}, most of it for {labels.listing(named)}."


def _took_hold(edit: Edit) -> str:
    """'Of 50 facts written at once by MEMIT, 49 have their new answer as the model's first choice, and 43 …'"""
    scores = edit.scores
    told = (
        f"Of {labels.count(edit.n, 'fact')} written at once by {edit.method.upper()}, {_successes(scores.records)} "
        "have their new answer as the model's first choice"
    )
    if scores.exact is not None:
        told += f", and {sum(each.exact is True for each in scores.records)} are exactly what it writes freely"
    if scores.paraphrase_rank1 is not None:
        told += f"; on paraphrases the new answer comes first in {labels.percent(scores.paraphrase_rank1.value)}"
    return told + "."


def known_before(edit: Edit) -> str:
    """How many of the facts the model knew before, and what came of these and of the others; empty: nobody says."""
    known, unknown = ([each for each in edit.scores.records if each.known is state] for state in (True, False))
    if known and unknown:
        return (
            f"Before, the model knew {len(known)} of them (the true answer was its first choice) and did not know "
            f"{len(unknown)}: {_successes(known)} of the known and {_successes(unknown)} of the unknown took the new "
            "answer."
        )
    return f"Before, the model knew {'all' if known else 'none'} of them." if known or unknown else ""


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
            _said(run.edited_from or "before", fact.old_answer),
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
