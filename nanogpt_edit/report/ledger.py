"""The ledger: what did each step gain, and what did it cost?

Rows are checkpoints, columns are skills. A cell holds the value with its interval and the change since the row above,
tested in pairs: better or worse when the 95% interval of the difference leaves zero out and p < 0.05, else
inconclusive; untested when neither a comparison file nor the raw records pair the two checkpoints on that skill.
Edited facts and neighbours are measured around the edit only: the row it started from and the edited row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nanogpt_edit.report import labels
from nanogpt_edit.report.intervals import mean_interval, paired_change
from nanogpt_edit.report.records import Change, Comparison, EditedFact, Interval, Run, Stage

STEPS = {"base": "Pretraining", "sft": "SFT", "grpo": "GRPO", "edited": "The edit"}
Verdict = Literal["better", "worse", "changed", "inconclusive", "untested"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured skill of one checkpoint, and since the row above: `earlier` value, `delta`, tested `change`.

    Those and `verdict` are None where there is no row above that measured it.
    """

    value: Interval
    earlier: float | None
    delta: float | None
    change: Change | None
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint. `cells` has one entry per column, None where the skill was not measured.

    `step` is what was done since the row above ("SFT", "The edit"), `outcome` what it gained and cost, in words.
    """

    stage: str
    before: str | None
    cells: tuple[Cell | None, ...]
    step: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Ledger:
    columns: tuple[labels.Column, ...]
    rows: tuple[Row, ...]


def make_ledger(run: Run) -> Ledger:
    """The ledger of a run; no rows when nothing was evaluated."""
    stages = list(run.stages.values())
    columns = _columns(run)
    rows: list[Row] = []
    for place, stage in enumerate(stages):
        before = stages[place - 1] if place else None
        cells = tuple(_cell(run, stage, before, column) for column in columns)
        outcome = _outcome(dict(zip(columns, cells, strict=True))) if before else ""
        step = STEPS.get(stage.name, stage.name)
        rows.append(Row(stage.name, before.name if before else None, cells, step, outcome))
    return Ledger(columns=columns, rows=tuple(rows))


def verdict_of(metric: str, change: Change) -> Verdict:
    """better / worse when the interval leaves zero out and p < 0.05 ("changed" for a metric without a good side)."""
    if change.low <= 0 <= change.high or (change.p_value is not None and change.p_value >= 0.05):
        return "inconclusive"
    side = labels.direction(metric)
    return "changed" if side == 0 else "better" if (change.delta > 0) == (side > 0) else "worse"


def find_change(comparison: Comparison | None, skill: str, metric: str) -> Change | None:
    """The change of one skill's metric: named "facts.recall" or "facts_recall", or "pass_at_1" for the problems."""
    if comparison is None:
        return None
    names = [f"{skill}.{metric}", f"{skill}_{metric}"]
    if skill == "problems" or metric not in ("pass_at_1", "well_formed"):
        names.append(metric)
    return next((comparison.metrics[name] for name in names if name in comparison.metrics), None)


def _columns(run: Run) -> tuple[labels.Column, ...]:
    """Two columns for the problems (pass@1 and the largest pass@k), one for every other skill, then the edit's two."""
    measured: dict[str, list[str]] = {}
    for stage in run.stages.values():
        for skill, metrics in stage.skills.items():
            known = measured.setdefault(skill, [])
            known.extend(metric for metric in metrics if metric not in known)
    columns: list[labels.Column] = []
    for skill in sorted(measured, key=_skill_place):
        if skill == "problems":
            columns += [(skill, metric) for metric in _pass_metrics(measured[skill])]
        else:
            columns.append((skill, _main_metric(measured[skill])))
    if run.edit is not None and run.edit.facts and "edited" in run.stages:
        columns += [("edit", "success"), ("edit", "neighbourhood")]
    return tuple(columns)


def _skill_place(skill: str) -> tuple[int, str]:
    order = ("problems", "arithmetic", "facts", "probes", "perplexity")
    return (order.index(skill) if skill in order else len(order), skill)


def _pass_metrics(metrics: list[str]) -> list[str]:
    ks = sorted(int(found[1]) for metric in metrics if (found := re.fullmatch(r"pass_at_(\d+)", metric)))
    wanted = sorted({ks[0], ks[-1]}) if ks else []
    return [f"pass_at_{k}" for k in wanted] or metrics[:1]


def _main_metric(metrics: list[str]) -> str:
    preferred = ("pass_at_1", "recall", "non_arithmetic", "nats_per_token", "perplexity")
    return next((metric for metric in preferred if metric in metrics), metrics[0])


def _cell(run: Run, stage: Stage, before: Stage | None, column: labels.Column) -> Cell | None:
    skill, metric = column
    if skill == "edit":
        return _edit_cell(run, stage, metric)
    value = stage.skills.get(skill, {}).get(metric)
    if value is None:
        return None
    earlier = before.skills.get(skill, {}).get(metric) if before else None
    if before is None or earlier is None:
        return Cell(value, None, None, None, None)
    change = find_change(run.comparisons.get(f"{stage.name}-{before.name}"), skill, metric)
    change = change or _change_from_records(before, stage, skill, metric)
    if change is None:
        return Cell(value, earlier.value, value.value - earlier.value, None, "untested")
    return Cell(value, earlier.value, change.delta, change, verdict_of(metric, change))


def _change_from_records(before: Stage, after: Stage, skill: str, metric: str) -> Change | None:
    """The paired change from the raw records of both checkpoints, where no comparison file holds it."""
    old, new = _per_unit(before, skill, metric), _per_unit(after, skill, metric)
    shared = sorted(old.keys() & new.keys())
    return paired_change([old[unit] for unit in shared], [new[unit] for unit in shared]) if shared else None


def _per_unit(stage: Stage, skill: str, metric: str) -> Mapping[str, float]:
    """A metric per problem or subject, as far as the records tell it: pass@k = 1 - C(n - c, k) / C(n, k), recall."""
    if skill == "facts":
        subjects: dict[str, list[bool]] = {}
        for fact in stage.facts:
            if fact.group == metric:
                subjects.setdefault(fact.subject, []).append(fact.recalled)
        return {subject: sum(recalled) / len(recalled) for subject, recalled in subjects.items()}
    found = re.fullmatch(r"pass_at_(\d+)", metric)
    if found is None:
        return {}
    samples: dict[str, list[bool]] = {}
    for completion in stage.completions:
        if completion.skill == skill:
            samples.setdefault(completion.problem_id, []).append(completion.correct)
    k = int(found[1])
    return {
        problem: 1 - math.comb(len(correct) - sum(correct), k) / math.comb(len(correct), k)
        for problem, correct in samples.items()
        if len(correct) >= k
    }


def _edit_cell(run: Run, stage: Stage, metric: str) -> Cell | None:
    """The edited facts and their neighbours, from the edit's own records: before it and after it."""
    stages = list(run.stages)
    origin = stages[stages.index("edited") - 1] if stages.index("edited") else None
    if run.edit is None or stage.name not in ("edited", origin):
        return None
    pairs = _edit_pairs(run.edit.facts, metric)
    if not pairs:
        return None
    old, new = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if stage.name == origin:
        return Cell(mean_interval(old), None, None, None, None)
    name = "success" if metric == "success" else "neighbourhood_after"
    written = run.edit.scores.get(name)
    change = paired_change(old, new)
    value = written if isinstance(written, Interval) else mean_interval(new)
    return Cell(value, sum(old) / len(old), change.delta, change, verdict_of(metric, change))


def _edit_pairs(facts: tuple[EditedFact, ...], metric: str) -> list[tuple[float, float]]:
    if metric == "success":
        return [(float(fact.rank_before == 1), float(fact.success)) for fact in facts]
    return [
        (fact.neighbourhood_before, fact.neighbourhood_after)
        for fact in facts
        if fact.neighbourhood_before is not None and fact.neighbourhood_after is not None
    ]


def _outcome(cells: Mapping[labels.Column, Cell | None]) -> str:
    """What a step gained, what it cost, what stays open: 'gained …. It cost …. Inconclusive: ….'"""
    groups: dict[Verdict, list[tuple[labels.Column, Cell]]] = {}
    for column, cell in cells.items():
        if cell is not None and cell.verdict is not None:
            groups.setdefault(cell.verdict, []).append((column, cell))
    gained, cost = _phrases(groups.get("better", [])), _phrases(groups.get("worse", []))
    sentences = [
        f"gained {labels.listing(gained)}." if gained else "gained nothing that could be shown.",
        f"It cost {labels.listing(cost)}." if cost else "It cost nothing that could be shown.",
    ]
    if changed := _phrases(groups.get("changed", [])):
        sentences.append(f"It changed {labels.listing(changed)}.")
    if unclear := [labels.column_label(column) for column, _ in groups.get("inconclusive", [])]:
        sentences.append(f"Inconclusive: {labels.listing(unclear)}.")
    if untested := [(column, cell) for column, cell in groups.get("untested", []) if cell.delta]:
        sentences.append(f"Not tested in pairs: {labels.listing(_phrases(untested))}.")
    return " ".join(sentences)


def _phrases(changes: Sequence[tuple[labels.Column, Cell]]) -> list[str]:
    """'4.9 points of problems pass@1 (62.9% → 67.8%)', '0.02 nats per token on held-out text (0.93 → 0.95)'."""
    phrases = []
    for (skill, metric), cell in changes:
        size = labels.signed(metric, abs(cell.delta or 0.0)).removeprefix("+")
        what = f"points of {labels.column_label((skill, metric))}"
        if not labels.is_share(metric):
            what = f"{labels.metric_label(metric)} on {labels.skill_label(skill)}"
        then, now = labels.quantity(metric, cell.earlier or 0.0), labels.quantity(metric, cell.value.value)
        phrases.append(f"{size} {what} ({then} → {now})")
    return phrases
