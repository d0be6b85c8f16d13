"""`nanogpt-edit report RUN` makes the report of a run again from its files; `ledger RUN` prints its one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.show import show
from nanogpt_edit.report import build, numbers, terminal_summary


@dataclass(frozen=True)
class Report:
    """Write report.html, report.md and summary.json of a run, whole or half-way; nothing is trained or measured."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""


@dataclass(frozen=True)
class Ledger:
    """Print what each step of a run gained and cost: skills by checkpoint, with intervals. Nothing is written."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""


def ledger(arguments: list[str]) -> int:
    """The verb `ledger`."""
    show(terminal_summary(numbers(parse(Ledger, arguments, verb="ledger").run)))
    return 0


def report(arguments: list[str]) -> int:
    """The verb `report`."""
    folder = parse(Report, arguments, verb="report").run
    show(terminal_summary(build(folder)))
    print(f"The report: {folder / 'report.html'}")
    return 0
