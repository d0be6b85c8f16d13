"""A run told to a tracker while it goes: every number of the logs, completions now and then, the report at the end.

The folder stays the truth. How far a tracker has been told is kept beside the logs, so that a run that was interrupted,
and repeats the steps since its last saved state, goes on with the same curves and tells no step twice; one that is
tracked only from its second call on is told from the beginning.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nanogpt_edit.common import distributed
from nanogpt_edit.common.files import write_json
from nanogpt_edit.common.records import read_json_as
from nanogpt_edit.common.settings import to_table
from nanogpt_edit.common.stats import Interval
from nanogpt_edit.common.terminal import say
from nanogpt_edit.evaluation.records import Evaluation
from nanogpt_edit.pipeline.recipe import Recipe
from nanogpt_edit.pipeline.trackers.tracker import Started, Tracker, TrackerName, open_tracker
from nanogpt_edit.report.summary import Summary
from nanogpt_edit.training.log_lines import Line, lines_told_to
from nanogpt_edit.training.records import read_log, read_rollouts, rollout_files

TEXT_EVERY = 10  # steps of GRPO between two that show completions
SHOWN = 4  # completions
LONGEST = 1000  # characters of one


@dataclass(frozen=True)
class Told:
    """`logs/tracked_<tracker>.json`: which run it is there, and the last step of each stage that it was told."""

    run_id: str
    steps: Mapping[str, int] = field(default_factory=dict)


class Tracking:
    """Tells a tracker. What goes wrong there is said once and ends the telling, never the run."""

    def __init__(self, folder: Path, name: TrackerName, settings: Mapping[str, object]) -> None:
        self.folder, self.name = folder, name
        self.state = folder / "logs" / f"tracked_{name}.json"
        known = read_json_as(Told, self.state) if self.state.exists() else None
        self.told = known or Told(secrets.token_hex(4))
        self.steps = {stage: step for stage, step in self.told.steps.items() if self.log(stage).exists()}
        started = Started(folder, self.told.run_id, settings)
        self.tracker: Tracker | None = open_tracker(name, started)
        for log in sorted((folder / "logs").glob("*.jsonl")):
            for step, line in read_log(log).items():
                self.line(log, {"step": step, **line})

    def log(self, stage: str) -> Path:
        return self.folder / "logs" / f"{stage}.jsonl"

    def line(self, log: Path, line: Line) -> None:
        """A line of a stage's log; one of a step that was told before is left out."""
        stage, step = log.stem, int(line["step"] or 0)
        if step <= self.steps.get(stage, -1):
            return
        numbers = {name: value for name, value in line.items() if name != "step" and value is not None}
        self.tell(lambda tracker: tracker.scalars(stage, step, numbers))
        if stage == "grpo" and step % TEXT_EVERY == 0:
            self.completions(stage, step)
        self.steps[stage] = step
        if self.tracker is not None:
            write_json(self.state, asdict(Told(self.told.run_id, self.steps)))

    def completions(self, stage: str, step: int) -> None:
        """What the policy wrote in a step: of the completions that are told token by token, the first few."""
        if (file := rollout_files(self.folder / "logs" / "rollouts").get(step)) is not None:
            shown = [each for each in read_rollouts(file) if each.told][:SHOWN]
            texts = [_shown(each.question, each.text, f"reward {each.reward:g}") for each in shown]
            self.tell(lambda tracker: tracker.text(f"{stage}/completions", step, "\n\n".join(texts)))

    def finish(self, summary: Summary) -> None:
        """The measures of each checkpoint, by its place in the run, with completions; and the report."""
        for place, (stage, skills) in enumerate(summary.stages.items()):
            self.checkpoint(place, stage, skills)
        self.tell(lambda tracker: tracker.report(self.folder, len(summary.stages)))

    def checkpoint(self, place: int, stage: str, skills: Mapping[str, Mapping[str, Interval]]) -> None:
        """Where a stage's model stands, and what it writes."""
        found = {f"{skill}.{name}": mean.value for skill, means in skills.items() for name, mean in means.items()}
        found = {name: value for name, value in found.items() if math.isfinite(value)}
        self.tell(lambda tracker: tracker.scalars("checkpoints", place, found))
        records = Evaluation.load(self.folder / "eval", stage).records
        written = [each for each in records if each.sample_index == 0][:SHOWN]
        texts = [_shown(each.problem_id, each.text, "right" if each.correct else "wrong") for each in written]
        said = "\n\n".join([f"**{stage}**", *texts])
        self.tell(lambda tracker: tracker.text("checkpoints/completions", place, said))

    def tell(self, what: Callable[[Tracker], None]) -> None:
        if self.tracker is None:
            return
        try:
            what(self.tracker)
        except Exception as error:
            self.tracker = None
            say(f"{self.name}: {type(error).__name__}: {error}. It is told no more; the run goes on without it.")


@contextmanager
def tracked(recipe: Recipe, folder: Path, name: TrackerName | None) -> Iterator[Tracking | None]:
    """Inside, a tracker hears of what the run in `folder` logs; none where none is named, or in another process.

    Raises UserError where the tracker's package is not installed.
    """
    if name is None or not distributed.is_first():
        yield None
        return
    tracking = Tracking(folder, name, to_table(recipe))
    try:
        with lines_told_to(tracking.line):
            yield tracking
    finally:
        tracking.tell(lambda tracker: tracker.close())


def _shown(question: str, text: str, verdict: str) -> str:
    """A completion as Markdown, out of which no text of a model's leads."""
    from nanogpt_edit.report.page import cell, fenced  # here, for it loads what draws pages

    return f"{cell(question)} ({verdict})\n\n{fenced(text[:LONGEST])}"
