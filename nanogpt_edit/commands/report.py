"""`nanogpt-edit report RUN` makes the report of a run again from its files; `ledger RUN` prints its one table."""

from __future__ import annotations

from nanogpt_edit.commands.arguments import Ledger, Report
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.show import show, show_json
from nanogpt_edit.report import build, numbers, terminal_summary


def ledger(arguments: list[str]) -> int:
    """The verb `ledger`."""
    chosen = parse(Ledger, arguments, verb="ledger")
    found = numbers(chosen.run)
    if chosen.json:
        show_json(found.as_json())
    else:
        show(terminal_summary(found))
    return 0


def report(arguments: list[str]) -> int:
    """The verb `report`."""
    folder = parse(Report, arguments, verb="report").run
    show(terminal_summary(build(folder)))
    print(f"The report: {folder / 'report.html'}")
    return 0
