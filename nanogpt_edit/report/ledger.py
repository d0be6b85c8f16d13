"""The ledger: what did each step gain, and what did it cost?

Rows are checkpoints, columns are skills. A cell holds the value with its interval and the change since the row above,
as the comparison of the two wrote it: better, worse or changed when the 95% interval of the difference leaves zero out
and p < 0.05, else inconclusive; untested when no comparison pairs the two checkpoints on that skill.
Edited facts and neighbours are shown around the edit only: the row it started from and the edited row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nanogpt_edit.common import stats
from nanogpt_edit.common.html import Shown
from nanogpt_edit.common.stats import Difference, Interval
from nanogpt_edit.editing.records import Edit
from nanogpt_edit.evaluation.records import Comparison, Evaluation
from nanogpt_edit.report import labels
from nanogpt_edit.report.run import Run, is_share

STEPS = {"base": "Pretraining", "sft": "SFT", "grpo": "GRPO", "edited": "The edit"}
CellVerdict = stats.Verdict | Literal["untested"]
AROUND_THE_EDIT = (("facts", "edited"), ("edit", "neighbourhood"))


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured skill of one checkpoint, and since the row above: `earlier` value, `delta`, tested `change`.

    Those and `verdict` are None where there is no row above that measured it. `samples` is how many completions of each
    problem the pair was measured on, where one of the two rows' own values rests on more.
    """

    value: Interval
    earlier: float | None
    delta: float | None
    change: Difference | None
    verdict: CellVerdict | None
    samples: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint. `cells` has one entry per column, None where the skill was not measured.

    `step` is what was done since the row above ("SFT", "The edit"), `outcome` what it gained and cost, in words, and
    `cost` the second alone, a phrase for each.
    """

    stage: str
    before: str | None
    cells: tuple[Cell | None, ...]
    step: str
    outcome: str
    cost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ledger(Shown):
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
        changes = _by_verdict(dict(zip(columns, cells, strict=True)))
        step, cost = STEPS.get(stage.stage, stage.stage), tuple(_phrases(changes.get("worse", [])))
        outcome = _outcome(changes, cost) if before else ""
        rows.append(Row(stage.stage, before.stage if before else None, cells, step, outcome, cost))
    return Ledger(columns=columns, rows=tuple(rows))


def find_change(comparison: Comparison | None, skill: str, metric: str) -> Difference | None:
    """The change of one skill's metric: named "facts_recall", or "pass_at_1" for the problems."""
    name = metric if skill == "problems" else f"{skill}_{metric}"
    return None if comparison is None else comparison.metrics.get(name)


def _columns(run: Run) -> tuple[labels.Column, ...]:
    """Two columns for the problems (pass@1 and the largest pass@k), one for every other skill, then the edit's two.

    Where no checkpoint has written a well-formed answer, the last number that it writes is its answer.
    """
    measured: dict[str, list[str]] = {}
    for stage in run.stages.values():
        for skill, metrics in stage.metrics.items():
            known = measured.setdefault(skill, [])
            known.extend(metric for metric in metrics if metric not in known)
    columns: list[labels.Column] = []
    for skill in sorted(measured, key=_skill_place):
        if "flexible_pass_at_1" in measured[skill] and not run.writes_answers(skill):
            columns.append((skill, "flexible_pass_at_1"))
        elif skill == "problems":
            columns += [(skill, metric) for metric in _pass_metrics(measured[skill])]
        else:
            columns.append((skill, _main_metric(measured[skill])))
    if run.edit is not None and "edited" in run.stages:
        if "edited" in measured.get("facts", ()):
            columns.append(("facts", "edited"))
        if run.edit.scores.neighbourhood_before and run.edit.scores.neighbourhood_after:
            columns.append(("edit", "neighbourhood"))
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


def _cell(run: Run, stage: Evaluation, before: Evaluation | None, column: labels.Column) -> Cell | None:
    skill, metric = column
    if column in AROUND_THE_EDIT:
        origin, stages = run.edited_from, list(run.stages)
        if column == ("edit", "neighbourhood"):
            if run.edit is None or stage.stage not in ("edited", origin):
                return None
            return _neighbours(run.edit, is_origin=stage.stage == origin)
        if origin is None or stages.index(stage.stage) < stages.index(origin):
            return None
        before = None if stage.stage == origin else before
    value = stage.metrics.get(skill, {}).get(metric)
    if value is None:
        return None
    earlier = before.metrics.get(skill, {}).get(metric) if before else None
    if before is None or earlier is None:
        return Cell(value, None, None, None, None)
    change = find_change(run.comparisons.get(f"{stage.stage}-{before.stage}"), skill, metric)
    if change is None:
        return Cell(value, earlier.value, value.value - earlier.value, None, "untested")
    counts = {_samples(before, skill), _samples(stage, skill)}
    return Cell(value, earlier.value, change.delta, change, change.verdict, min(counts) if len(counts) > 1 else None)


def _samples(stage: Evaluation, skill: str) -> int:
    """Completions of each problem of a skill; 0 where it has none."""
    return max((one.sample_index + 1 for one in stage.records if one.skill == skill), default=0)


def _neighbours(edit: Edit, *, is_origin: bool) -> Cell | None:
    """The neighbours of the edited facts, from the edit's own records: before it, or after it and the change."""
    before, after = edit.scores.neighbourhood_before, edit.scores.neighbourhood_after
    if before is None or after is None:
        return None
    if is_origin:
        return Cell(before, None, None, None, None)
    pairs = [
        (fact.neighbourhood_before, fact.neighbourhood_after)
        for fact in edit.scores.records
        if fact.neighbourhood_before is not None and fact.neighbourhood_after is not None
    ]
    if len(pairs) < 2:
        return Cell(after, before.value, after.value - before.value, None, "untested")
    change = stats.paired_difference(*zip(*pairs, strict=True))
    return Cell(after, before.value, change.delta, change, change.verdict)


Changes = Mapping[CellVerdict, Sequence[tuple[labels.Column, Cell]]]
"""The cells of a row by what became of them."""


def _by_verdict(cells: Mapping[labels.Column, Cell | None]) -> Changes:
    groups: dict[CellVerdict, list[tuple[labels.Column, Cell]]] = {}
    for column, cell in cells.items():
        if cell is not None and cell.verdict is not None:
            groups.setdefault(cell.verdict, []).append((column, cell))
    return groups


def _outcome(groups: Changes, cost: Sequence[str]) -> str:
    """What a step gained, what it cost, what stays open: 'gained …. It cost …. Inconclusive: ….'"""
    gained = _phrases(groups.get("better", []))
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
        if not is_share(metric):
            what = f"{labels.metric_label(metric)} on {labels.skill_label(skill)}"
        then, now = labels.quantity(metric, cell.earlier or 0.0), labels.quantity(metric, cell.value.value)
        where = f"; the pair on {labels.count(cell.samples, 'sample')} of each problem" if cell.samples else ""
        phrases.append(f"{size} {what} ({then} → {now}{where})")
    return phrases
