"""The part of a model's card that its run has measured: the ledger's row with verdicts, and what an edit did.

The same numbers stand in the card's metadata, as a hub's page reads them (`model-index`). A card without a part of ours
is somebody else's, and left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from nanogpt_edit.common.card import CARD, card_text, entry, read_card
from nanogpt_edit.common.files import read_json, write_text
from nanogpt_edit.common.stats import Interval
from nanogpt_edit.editing.records import Edit, FactScore
from nanogpt_edit.report import labels
from nanogpt_edit.report.expect import Expectation
from nanogpt_edit.report.ledger import Cell, Ledger, Row
from nanogpt_edit.report.page import EDIT_SCORES, cell
from nanogpt_edit.report.run import Run, is_share
from nanogpt_edit.report.summary import Summary

WORLD = "nanogpt_edit, the embedded world"


def renew_cards(run: Run, summary: Summary) -> None:
    """Write the results into the card of every checkpoint of a run that was measured as it lies there."""
    for row in summary.ledger.rows:
        file = run.path / row.stage / CARD
        if not file.is_file() or not _is_what_was_measured(run, row.stage):
            continue
        card = read_card(file.read_text(encoding="utf-8", errors="replace"))
        if card.is_ours:
            index = entry("model-index", model_index(run, summary.ledger, row))
            results = results_text(run, summary, row)
            write_text(
                file, card_text(replace(card, results=results, metadata={**card.metadata, "model-index": index}))
            )


def results_text(run: Run, summary: Summary, row: Row) -> str:
    """The results as Markdown: a table, what the step gained and cost, expectations, the edit."""
    parts = [f"## Results\n\n{_how(run, row)}", "\n".join(_table(summary.ledger, row))]
    if row.before:
        parts.append(f"{row.step} {row.outcome}")
    judged = [each for each in summary.expectations if _is_about(each, row.stage)]
    if judged:
        parts.append("What was expected of it:\n\n" + "\n".join(map(_judged, judged)))
    if row.stage == "edited" and run.edit is not None:
        parts.append("\n".join(_edit(run.edit, summary)))
    return "\n\n".join(parts)


def model_index(run: Run, ledger: Ledger, row: Row) -> list[dict[str, object]]:
    """The ledger's row as Hugging Face's metadata have it; shares in percent, an interval in the metric's name."""
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": _dataset(run, skill), "name": _dataset(run, skill)},
            "metrics": [_metric(skill, metric, found.value)],
        }
        for (skill, metric), found in zip(ledger.columns, row.cells, strict=True)
        if found is not None
    ]
    return [{"name": f"{run.name}/{row.stage}", "results": results}]


def _metric(skill: str, metric: str, found: Interval) -> dict[str, object]:
    bounds = f"95% interval {labels.span(metric, found.low, found.high)}, n {found.n:,}"
    scale = 100 if is_share(metric) else 1
    name = f"{labels.column_label((skill, metric))}{', %' if is_share(metric) else ''} ({bounds})"
    return {"type": metric, "name": name, "value": float(f"{scale * found.value:.4g}")}


def _dataset(run: Run, skill: str) -> str:
    problems = run.recipe.get("problems")
    path = problems.get("path") if isinstance(problems, dict) else None
    return str(path) if skill == "problems" and path else f"{WORLD}: {labels.skill_label(skill)}"


def _is_what_was_measured(run: Run, stage: str) -> bool:
    """Are the weights in the folder still those that were evaluated? (Those of other types were cast for it.)"""
    folder = run.path / stage
    if not (folder / "lineage.json").is_file() or not (folder / "config.json").is_file():
        return False
    cast = read_json(folder / "config.json").get("torch_dtype") != "float32"
    return cast or read_json(folder / "lineage.json").get("fingerprint") == run.stages[stage].fingerprint


def _how(run: Run, row: Row) -> str:
    settings = run.stages[row.stage].settings
    samples = max((one.sample_index + 1 for one in run.stages[row.stage].records if one.skill == "problems"), default=0)
    asked = f" {samples} samples of each problem at temperature {settings.get('temperature')}." if samples else ""
    return (
        f"Measured in the run `{cell(run.name)}` on problems and text that were not trained on.{asked} The run's "
        "report has the records behind every number; a change is tested in pairs on the same problems."
    )


def _table(ledger: Ledger, row: Row) -> Iterator[str]:
    since = f"change since {labels.stage_label(row.before)}" if row.before else "change"
    yield f"| what | value | 95% interval | n | {since} | verdict |"
    yield "|---|---|---|---|---|---|"
    for column, found in zip(ledger.columns, row.cells, strict=True):
        if found is not None:
            metric, value = column[1], found.value
            bounds = labels.span(metric, value.low, value.high)
            cells = (labels.column_label(column), labels.quantity(metric, value.value), bounds, f"{value.n:,}")
            yield f"| {' | '.join(map(cell, cells))} | {' | '.join(map(cell, _change(metric, found)))} |"


def _change(metric: str, found: Cell) -> tuple[str, str]:
    if found.verdict is None or found.delta is None:
        return "–", "–"
    bounds = f" {labels.change_span(metric, found.change)}" if found.change else ""
    size = f"{labels.signed(metric, found.delta)}{labels.unit(metric)}{bounds}"
    return size, f"{labels.ARROWS[found.verdict]} {found.verdict}"


def _is_about(expectation: Expectation, stage: str) -> bool:
    beginnings = (f"stages.{stage}.", f"comparisons.{stage}-", *(("edit.",) if stage == "edited" else ()))
    return expectation.metric.startswith(beginnings)


def _judged(each: Expectation) -> str:
    what = f"{labels.path_label(each.metric)} {labels.bound_label(each)}: {labels.measured(each)}"
    return f"- {labels.MARKS[each.verdict]} {each.verdict}: {cell(what)}"


def _edit(edit: Edit, summary: Summary) -> Iterator[str]:
    """What the edit did: means, every form that was asked, and each fact, folded."""
    layers = labels.listing(edit.layers)
    yield f"## What the edit did\n\n{labels.count(edit.n, 'fact')} written by {edit.method} into layers {layers}.\n"
    yield "| what | value | 95% interval |\n|---|---|---|"
    means = edit.scores.means
    for name in EDIT_SCORES:
        if (mean := means.get(name)) is not None:
            cells = (
                labels.metric_label(name),
                labels.quantity(name, mean.value),
                labels.span(name, mean.low, mean.high),
            )
            yield f"| {' | '.join(map(cell, cells))} |"
    if summary.kinds:
        yield "\n| asked, and right | before | after |\n|---|---|---|"
        for each in summary.kinds:
            shares = (labels.interval("right", each.before), labels.interval("right", each.after))
            yield f"| {' | '.join(map(cell, (labels.KIND_LABELS[each.kind], *shares)))} |"
    yield "\n" + _facts(edit.scores.records)


def _facts(facts: Sequence[FactScore]) -> str:
    lines = [
        f"| {' | '.join(map(cell, (fact.prompt, fact.old_answer, fact.target_new, fact.new_answer)))} |"
        for fact in facts
    ]
    head = "| prompt | it said | was to say | it says |\n|---|---|---|---|"
    return f"<details><summary>Every fact</summary>\n\n{head}\n" + "\n".join(lines) + "\n\n</details>"
