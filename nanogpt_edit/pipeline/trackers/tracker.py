"""What a tracker is: a program that draws the curves of runs beside each other. One file each; the table is here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from nanogpt_edit.common.errors import UserError

TrackerName = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "nanogpt_edit"


@dataclass(frozen=True)
class Started:
    """What a tracker is told of a run when it begins, or goes on."""

    folder: Path
    run_id: str
    """The same for every call of one run, so that its curves go on."""
    settings: Mapping[str, object]
    """The recipe, resolved."""

    @property
    def name(self) -> str:
        return f"{self.folder.resolve().name}-{self.run_id}"


class Tracker(Protocol):
    """Where the numbers of a run go besides its folder. It never asks a network unless the person has said so."""

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step of a stage; steps of a stage only grow."""

    def text(self, name: str, step: int, markdown: str) -> None:
        """A text to read: completions."""

    def report(self, folder: Path, step: int) -> None:
        """The report of a finished run, in the run's folder."""

    def close(self) -> None:
        """Everything has been told; what is still on its way is written."""


def open_tracker(name: TrackerName, started: Started) -> Tracker:
    """The tracker of that name, told of the run. Raises UserError where its package is not installed."""
    try:
        module = importlib.import_module(f"nanogpt_edit.pipeline.trackers.{name}")
        tracker: Tracker = module.open_run(started)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name:
            raise
        raise UserError(
            f"--track {name} needs {name}, which is not installed; install the extra: "
            f"pip install 'nanogpt-edit[{name}]'."
        ) from None
    return tracker
