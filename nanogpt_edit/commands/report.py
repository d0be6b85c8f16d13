"""`nanogpt-edit report RUN` makes the report of a run again from its files, `report A B` compares two; `ledger RUN`
prints its one table."""

from __future__ import annotations

from pathlib import Path

from nanogpt_edit.commands.arguments import Ledger, Report
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.show import show, show_json
from nanogpt_edit.common.files import check_writable, write_text
from nanogpt_edit.report import build, numbers, terminal_summary
from nanogpt_edit.report.pair import pair_table


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
    chosen = parse(Report, arguments, verb="report")
    if len(chosen.runs) == 2:
        return _pair(*chosen.runs, chosen.out)
    (folder,) = chosen.runs
    show(terminal_summary(build(folder, figures=chosen.figures)))
    print(f"The report: {folder / 'report.html'}")
    if chosen.figures is not None:
        print(f"Its figures: {chosen.figures}")
    return 0


def _pair(first: Path, second: Path, out: Path | None) -> int:
    """Two runs in pairs: a table, and a page where it is asked for."""
    from nanogpt_edit.pipeline.compare_runs import compare_runs  # here, for it loads torch
    from nanogpt_edit.report.page import render_pair

    if out is not None:
        check_writable(out)
    pair = compare_runs(first, second)
    show(pair_table(pair))
    if out is not None:
        write_text(out, render_pair(pair))
        print(f"The comparison: {out}")
    return 0
