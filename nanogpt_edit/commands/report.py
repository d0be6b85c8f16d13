"""`nanogpt-edit report RUN`: the report of a run, made again from its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from nanogpt_edit.commands.parse import parse
from nanogpt_edit.report import build, terminal_summary


@dataclass(frozen=True)
class Report:
    """Write report.html, report.md and summary.json of a run, whole or half-way; nothing is trained or measured."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""


def report(arguments: list[str]) -> int:
    """The verb `report`."""
    folder = parse(Report, arguments, verb="report").run
    Console(highlight=False).print(terminal_summary(build(folder)))
    print(f"The report: {folder / 'report.html'}")
    return 0
