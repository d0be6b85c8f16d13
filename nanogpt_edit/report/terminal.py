"""The end of a run, in the terminal: the ledger and the verdicts, in at most 100 columns."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nanogpt_edit.report import labels
from nanogpt_edit.report.expect import Expectation
from nanogpt_edit.report.ledger import Cell
from nanogpt_edit.report.summary import Summary

ARROWS = {"better": "▲", "worse": "▼", "changed": "◆", "inconclusive": "≈", "untested": "·"}
STYLES = {"better": "green", "worse": "red", "changed": "default", "inconclusive": "dim", "untested": "dim"}
MARKS = {
    "pass": ("✓", "green"),
    "fail": ("✗", "red"),
    "wrong": ("✗", "red"),
    "inconclusive": ("?", "yellow"),
    "undecidable": ("?", "yellow"),
    "not measured": ("–", "dim"),
}
SHORT = {
    ("facts", "recall"): "true facts",
    ("probes", "non_arithmetic"): "non-math probes",
    ("perplexity", "nats_per_token"): "held-out nats",
    ("perplexity", "perplexity"): "held-out perplexity",
    ("edit", "neighbourhood"): "edits' neighbours",
}


def terminal_summary(summary: Summary) -> RenderableType:
    """The ledger as a table, a line that explains its marks, and one line per expectation."""
    parts: list[RenderableType] = []
    if summary.ledger.rows:
        parts += [
            _ledger(summary),
            Text("▲ better  ▼ worse  ◆ changed  ≈ inconclusive, tested in pairs  · not tested", style="dim"),
        ]
    parts += [_verdict_line(expectation) for expectation in summary.expectations]
    return Group(*parts)


def _ledger(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 1, 0))
    table.add_column("", no_wrap=True, style="bold")
    for column in summary.ledger.columns:
        table.add_column(Text(SHORT.get(column, labels.column_label(column))), justify="right", vertical="bottom")
    for row in summary.ledger.rows:
        cells = zip(summary.ledger.columns, row.cells, strict=True)
        table.add_row(labels.stage_label(row.stage), *(_cell(column, cell) for column, cell in cells))
    return table


def _cell(column: labels.Column, cell: Cell | None) -> Text:
    if cell is None:
        return Text("–", style="dim")
    metric = column[1]
    text = Text(labels.quantity(metric, cell.value.value))
    ends = [labels.quantity(metric, end).removesuffix("%") for end in (cell.value.low, cell.value.high)]
    text.append("\n" + "–".join(end[:5].rstrip(".") for end in ends), style="dim")
    if cell.verdict is not None and cell.delta is not None:
        text.append(f"\n{ARROWS[cell.verdict]} {labels.signed(metric, cell.delta)}", style=STYLES[cell.verdict])
    return text


def _verdict_line(expectation: Expectation) -> Text:
    mark, style = MARKS[expectation.verdict]
    text = Text(f"{mark} {expectation.verdict:<13}", style=style)
    text.append(f"{labels.path_label(expectation.metric)} {labels.bound_label(expectation)}", style="default")
    return text.append(f"   {labels.measured(expectation)}", style="dim")
