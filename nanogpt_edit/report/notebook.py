"""The records of a run in a notebook: its ledger, an evaluation, a transcript, in the report's words and numbers."""

from __future__ import annotations

from markupsafe import Markup

from nanogpt_edit.common.html import QUIET, html_of, line, plain, span, table
from nanogpt_edit.common.reasoning import TokenKind
from nanogpt_edit.evaluation.records import Evaluation, Transcript
from nanogpt_edit.report import labels
from nanogpt_edit.report.ledger import Cell, Ledger
from nanogpt_edit.report.summary import Summary

VERDICTS = {"better": "color:#1a8a4e", "worse": "color:#d5383f"}
"""Legible on white and on black."""
KINDS: dict[TokenKind, str] = {"think": QUIET, "answer": "font-weight:600;color:#1a8a4e", "tag": "color:#2f7fd6"}


@html_of.register
def evaluation(found: Evaluation) -> Markup:
    """Every metric of every skill with its 95% interval."""
    rows = [
        (
            labels.skill_label(skill),
            labels.metric_label(name),
            labels.quantity(name, measured.value),
            labels.span(name, measured.low, measured.high),
            f"{measured.n:,}",
        )
        for skill, metrics in found.metrics.items()
        for name, measured in metrics.items()
    ]
    return table(("skill", "metric", labels.stage_label(found.stage), "95% interval", "n"), rows, words=2)


@html_of.register
def ledger(found: Ledger) -> Markup:
    """Checkpoints by skills; below a value its interval and the change since the row above."""
    rows = [
        (
            Markup("<b>{}</b>").format(labels.stage_label(row.stage)),
            *(_cell(column[1], cell) for column, cell in zip(found.columns, row.cells, strict=True)),
        )
        for row in found.rows
    ]
    legend = "▲ better, ▼ worse, ◆ changed, ≈ inconclusive, tested in pairs; · not tested"
    head = ("", *(labels.column_label(column) for column in found.columns))
    return table(head, rows) + line(legend, style=QUIET)


def _cell(metric: str, cell: Cell | None) -> Markup:
    if cell is None:
        return Markup("–")
    parts = [
        Markup.escape(labels.quantity(metric, cell.value.value)),
        span(labels.span(metric, cell.value.low, cell.value.high), QUIET),
    ]
    if cell.verdict is not None and cell.delta is not None:
        change = f"{labels.ARROWS[cell.verdict]} {labels.signed(metric, cell.delta)}"
        parts.append(span(change, VERDICTS.get(cell.verdict, QUIET)))
    return Markup("<br>").join(parts)


@html_of.register
def summary(found: Summary) -> Markup:
    """The ledger, and what was expected of the run beside what came."""
    expected = [
        (
            f"{labels.MARKS[each.verdict]} {each.verdict}",
            f"{labels.path_label(each.metric)} {labels.bound_label(each)}",
            labels.measured(each),
        )
        for each in found.expectations
    ]
    judged = table(("", "expected", "measured"), expected, words=3) if expected else Markup("")
    return (ledger(found.ledger) if found.ledger.rows else Markup("")) + judged


@html_of.register
def transcript(found: Transcript) -> Markup:
    """The question, and what was written, token by token: thinking quiet, the answer bright; pointing tells the id."""
    question = Markup("").join(_token(token_id, text, "") for token_id, text in found.prompt)
    written = Markup("").join(_token(token_id, text, KINDS.get(kind, "")) for token_id, text, kind in found.completion)
    counts = f"{found.thinking_tokens} thinking and {found.answer_tokens} answer tokens"
    verdict = f"{labels.stage_label(found.stage)}: {'right' if found.correct else 'wrong'}, the answer is {found.gold}"
    style = "white-space:pre-wrap;max-width:60em"
    return line(question, style=style) + line(written, style=style) + line(f"{verdict}; {counts}.", style=QUIET)


def _token(token_id: int, text: str, style: str) -> Markup:
    return Markup('<span title="{}" style="{}">{}</span>').format(token_id, style, plain(text))
