"""TensorBoard: event files in the run's folder `tensorboard`; `tensorboard --logdir runs` shows the runs in `runs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

from nanogpt_edit.pipeline.trackers.tracker import Started, Tracker

FOLDER = "tensorboard"


class _TensorBoard:
    """A call that goes on writes a file of its own; TensorBoard shows the files of a folder as one run."""

    def __init__(self, started: Started) -> None:
        self.writer = SummaryWriter(str(started.folder / FOLDER))

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{stage}/{name}", value, step)

    def text(self, name: str, step: int, markdown: str) -> None:
        self.writer.add_text(name, markdown, step)

    def report(self, folder: Path, step: int) -> None:
        self.writer.add_text("report", (folder / "report.md").read_text(encoding="utf-8"), step)

    def close(self) -> None:
        self.writer.close()


def open_run(started: Started) -> Tracker:
    return _TensorBoard(started)
