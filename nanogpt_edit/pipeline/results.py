"""What a run or a stage came to, for Python: rows for a table, figures, the models, all read from its folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup
from rich.console import Console

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common.html import html_of, line
from nanogpt_edit.common.words import count
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline.records import StageName
from nanogpt_edit.report import terminal_summary
from nanogpt_edit.report.labels import stage_label
from nanogpt_edit.report.read import read_run, read_series
from nanogpt_edit.report.run import Run
from nanogpt_edit.report.summary import Summary, summarise
from nanogpt_edit.training.records import read_log

if TYPE_CHECKING:
    from nanogpt_edit.report.canvas import Picture  # it loads matplotlib

Row = dict[str, object]
"""One line of a table: `pandas.DataFrame(rows)` is the table."""
LOGS: dict[StageName, str] = {"base": "pretrain", "sft": "sft", "grpo": "grpo"}


@dataclass(frozen=True)
class Results:
    """A run: `.ledger`, `.evaluations` and `.comparisons` are rows for a table, `.figures` the report's, by name."""

    path: Path
    """Its folder."""
    status: int
    """0, or 3 when an expectation of the recipe failed."""

    @cached_property
    def run(self) -> Run:
        """All records of the folder."""
        return read_run(self.path)

    @cached_property
    def summary(self) -> Summary:
        """The numbers of the report, as summary.json has them."""
        return summarise(self.run)

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def ledger(self) -> list[Row]:
        """What each step gained and cost: a row for each checkpoint and skill, with the change since the one before."""
        return list(_ledger_rows(self.summary))

    @property
    def evaluations(self) -> list[Row]:
        """Every metric of every skill of every checkpoint."""
        return [
            {"stage": stage, "skill": skill, "metric": name, **asdict(measured)}
            for stage, skills in self.summary.stages.items()
            for skill, metrics in skills.items()
            for name, measured in metrics.items()
        ]

    @property
    def comparisons(self) -> list[Row]:
        """Every difference of two checkpoints in pairs."""
        return [
            {"stage": pair.after, "before": pair.before, "metric": name, **asdict(change)}
            for pair in self.run.comparisons.values()
            for name, change in pair.metrics.items()
        ]

    @cached_property
    def figures(self) -> dict[str, Picture]:
        """The report's pictures by their names."""
        from nanogpt_edit.report.view import make_view  # here, for it loads matplotlib

        return {picture.name: picture for picture in make_view(self.run, self.summary).pictures}

    def log(self, stage: StageName) -> list[Row]:
        """What was logged of every training step of a stage."""
        return log_rows(self.path, stage)

    def load(self, stage: StageName) -> GPT:
        """The model that a stage has left."""
        return checkpoint.load(self.path / stage)

    def __str__(self) -> str:
        console = Console(width=100, highlight=False, color_system=None)
        with console.capture() as shown:
            console.print(terminal_summary(self.summary))
        return f"{shown.get()}The report: {self.report}"

    def _repr_html_(self) -> str:
        """The ledger, and where the report is, for a notebook."""
        link = Markup('<a href="{0}">{0}</a>').format(self.report)
        return (html_of(self.summary) or Markup("")) + line(Markup("The report: {}").format(link))


@dataclass(frozen=True)
class Trained:
    """A stage that was trained by itself: `.model`, its `.log` as rows for a table, its curves as `.figures`."""

    model: GPT = field(repr=False)
    stage: StageName
    path: Path
    """The folder; the model is in that of the stage's name."""

    @property
    def log(self) -> list[Row]:
        """What was logged of every step."""
        return log_rows(self.path, self.stage)

    @cached_property
    def figures(self) -> dict[str, Picture]:
        """The learning curves by their names."""
        from nanogpt_edit.report.plots import learning_curves  # here, for it loads matplotlib

        name = LOGS[self.stage]
        curves = learning_curves({name: read_series(log_file(self.path, self.stage))})
        return {picture.name: picture for picture in curves}

    def __str__(self) -> str:
        return f"{stage_label(self.stage)}: {count(len(self.log), 'step')}. The model: {self.path / self.stage}"

    def _repr_html_(self) -> str:
        """The curves, for a notebook."""
        return line(self) + Markup("").join(Markup(each._repr_html_()) for each in self.figures.values())


def log_file(folder: Path, stage: StageName) -> Path:
    return folder / "logs" / f"{LOGS.get(stage, stage)}.jsonl"


def log_rows(folder: Path, stage: StageName) -> list[Row]:
    """The lines of a stage's log; none where it has not trained."""
    path = log_file(folder, stage)
    return [{"step": int(step), **row} for step, row in read_log(path).items()] if path.exists() else []


def _ledger_rows(summary: Summary) -> Iterator[Row]:
    ledger = summary.ledger
    for row in ledger.rows:
        for (skill, metric), cell in zip(ledger.columns, row.cells, strict=True):
            if cell is not None:
                measured: Row = {"stage": row.stage, "skill": skill, "metric": metric, **asdict(cell.value)}
                yield measured | {"change": cell.delta, "verdict": cell.verdict}
