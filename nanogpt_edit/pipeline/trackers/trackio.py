"""Trackio: on this machine, where TRACKIO_DIR says or in its cache; `trackio show --project nanogpt_edit` draws it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import trackio

from nanogpt_edit.pipeline.trackers.tracker import PROJECT, Started, Tracker


class _Trackio:
    """What it says on standard output, where results belong, goes to standard error."""

    def __init__(self, started: Started) -> None:
        with redirect_stdout(sys.stderr):
            self.run = trackio.init(
                project=PROJECT,
                name=started.name,
                resume="allow",
                config=dict(started.settings),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self.run.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def text(self, name: str, step: int, markdown: str) -> None:
        self.run.log({name: trackio.Markdown(markdown)}, step=step)

    def report(self, folder: Path, step: int) -> None:
        self.text("report", step, (folder / "report.md").read_text(encoding="utf-8"))

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            trackio.finish()


def open_run(started: Started) -> Tracker:
    return _Trackio(started)
