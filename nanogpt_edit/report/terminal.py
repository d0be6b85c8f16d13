"""The end of a run, in the terminal: the ledger and the verdicts, in at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from nanogpt_edit.common.stats import Interval
from nanogpt_edit.report import labels
from nanogpt_edit.report.expect import Expectation
from nanogpt_edit.report.ledger import Cell
from nanogpt_edit.report.summary import Summary

STYLES = {"better": "green", "worse": "red", "changed": "default", "inconclusive": "dim", "untested": "dim"}
JUDGED = {"pass": "green", "fail": "red", "wrong": "red", "inconclusive": "yellow", "undecidable": "yellow"}
SHORT = {
    ("facts", "recall"): "true facts",
    ("probes", "non_arithmetic"): "non-math probes",
    ("perplexity", "nats_per_token"): "held-out nats",
    ("perplexity", "perplexity"): "held-out perplexity",
    ("facts", "edited"): "new answers",
    ("edit", "neighbourhood"): "edits' neighbours",
}


def terminal_summary(summary: Summary) -> RenderableType:
    """The ledger as a table, a line that explains its marks, and one line per expectation."""
    parts: list[RenderableType] = []
    if summary.ledger.rows:
        parts += [
            _Ledger(summary),
            Text("▲ better  ▼ worse  ◆ changed  ≈ inconclusive, tested in pairs  · not tested", style="dim"),
        ]
    parts += _edits(summary)
    parts += [_verdict_line(expectation) for expectation in summary.expectations]
    return Group(*parts)


def _edits(summary: Summary) -> list[RenderableType]:
    """How many new answers come first, beside how many are written in full; nothing where that was not measured."""
    success, exact = ((summary.edit or {}).get(name) for name in ("success", "exact"))
    if not isinstance(success, Interval) or not isinstance(exact, Interval):
        return []
    first, whole = labels.quantity("success", success.value), labels.quantity("exact", exact.value)
    told = Text(f"Edits: {first} have their new answer at rank 1, {whole} written freely are exactly it.")
    kinds = [each for each in summary.kinds if each.kind not in ("prompt", "behind", "paraphrase", "neighbour")]
    for each in kinds:
        told.append(f"\n  {labels.KIND_LABELS[each.kind]:<34}", style="dim")
        told.append(f"{labels.percent(each.before.value):>6} → {labels.percent(each.after.value):<6} ")
        if each.change is not None:
            mark = f" {labels.ARROWS[each.change.verdict]} {labels.signed('right', each.change.delta)}"
            told.append(mark, style=STYLES[each.change.verdict])
    return [told]


@dataclass(frozen=True)
class _Ledger:
    """The ledger in as many tables below one another as the terminal's width asks for; no cell is ever cut."""

    summary: Summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns: list[int] = []
        for place in range(len(self.summary.ledger.columns)):
            wider = _table(self.summary, [*columns, place])
            if columns and Measurement.get(console, options.update(max_width=1000), wider).maximum > options.max_width:
                yield _table(self.summary, columns)
                columns = []
            columns.append(place)
        yield _table(self.summary, columns)


def _table(summary: Summary, places: Sequence[int]) -> Table:
    """The ledger's columns at these places."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 1, 0))
    table.add_column("", no_wrap=True, style="bold")
    for place in places:
        column = summary.ledger.columns[place]
        header = "\n".join(textwrap.wrap(SHORT.get(column, labels.column_label(column)), 10, break_long_words=False))
        table.add_column(Text(header), justify="right", vertical="bottom", no_wrap=True)
    for row in summary.ledger.rows:
        cells = (_cell(summary.ledger.columns[place], row.cells[place]) for place in places)
        table.add_row(labels.stage_label(row.stage), *cells)
    return table


def _cell(column: labels.Column, cell: Cell | None) -> Text:
    if cell is None:
        return Text("–", style="dim")
    metric = column[1]
    text = Text(labels.quantity(metric, cell.value.value))
    ends = [labels.quantity(metric, end).removesuffix("%") for end in (cell.value.low, cell.value.high)]
    text.append("\n" + "–".join(end[:5].rstrip(".") for end in ends), style="dim")
    if cell.verdict is not None and cell.delta is not None:
        text.append(f"\n{labels.ARROWS[cell.verdict]} {labels.signed(metric, cell.delta)}", style=STYLES[cell.verdict])
        if cell.samples:
            text.append(f"\n{cell.samples} samples", style="dim")
    return text


def _verdict_line(expectation: Expectation) -> Text:
    verdict = expectation.verdict
    text = Text(f"{labels.MARKS[verdict]} {verdict:<13}", style=JUDGED.get(verdict, "dim"))
    text.append(f"{labels.path_label(expectation.metric)} {labels.bound_label(expectation)}", style="default")
    return text.append(f"   {labels.measured(expectation)}", style="dim")
