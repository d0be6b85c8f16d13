"""A tracker hears of every number once, whatever was interrupted; TensorBoard's files are read back if it is there."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from report_run import make_run

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import append_jsonl, read_jsonl, write_jsonl
from nanogpt_edit.pipeline import tracking
from nanogpt_edit.pipeline.recipe import Recipe
from nanogpt_edit.pipeline.trackers.tracker import Started, open_tracker
from nanogpt_edit.pipeline.tracking import tracked
from nanogpt_edit.report import numbers
from nanogpt_edit.training.log_lines import write_line


@dataclass
class Heard:
    """A tracker that remembers; `breaks` in the middle when asked to."""

    points: list[tuple[str, int, Mapping[str, float]]] = field(default_factory=list)
    texts: list[tuple[str, int, str]] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    closed: int = 0
    breaks: bool = False

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if self.breaks:
            raise ConnectionError("no route")
        self.points.append((stage, step, dict(values)))

    def text(self, name: str, step: int, markdown: str) -> None:
        self.texts.append((name, step, markdown))

    def report(self, folder: Path, step: int) -> None:
        self.texts.append(("report", step, (folder / "recipe.toml").read_text(encoding="utf-8")))

    def close(self) -> None:
        self.closed += 1

    def steps(self, stage: str) -> list[int]:
        return [step for name, step, _ in self.points if name == stage]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    heard = Heard()

    def begin(name: str, started: Started) -> Heard:
        heard.runs.append(started.run_id)
        return heard

    monkeypatch.setattr(tracking, "open_tracker", begin)
    return heard


def test_a_run_that_goes_on_tells_each_step_once_and_one_that_begins_late_tells_all(
    heard: Heard, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "sft.jsonl"
    write_line(log, {"step": 0, "loss": 3.0})  # before anybody listened
    with tracked(Recipe(), tmp_path, "tensorboard"):
        write_line(log, {"step": 1, "loss": 2.0, "lr": None})
        write_line(log, {"step": 2, "loss": 1.0})
    write_jsonl(log, read_jsonl(log)[:2])  # killed; the saved state was that of step 2
    with tracked(Recipe(), tmp_path, "tensorboard"):
        write_line(log, {"step": 2, "loss": 1.0})
        write_line(log, {"step": 3, "loss": 0.5})
    append_jsonl(log, {"step": 4, "loss": 0.4})  # a call without a tracker
    with tracked(Recipe(), tmp_path, "tensorboard"):
        write_line(log, {"step": 5, "loss": 0.3})
    assert heard.steps("sft") == [0, 1, 2, 3, 4, 5]
    assert heard.points[1] == ("sft", 1, {"loss": 2.0})
    assert len(set(heard.runs)) == 1 and heard.closed == 3
    log.unlink()  # begun again
    with tracked(Recipe(), tmp_path, "tensorboard"):
        write_line(log, {"step": 0, "loss": 3.5})
    assert heard.steps("sft")[-1] == 0
    write_line(log, {"step": 1, "loss": 3.5})
    assert len(heard.points) == 7, "outside nobody hears"


def test_completions_measures_and_the_report_are_told(heard: Heard, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with tracked(Recipe(), run, "wandb") as told:
        assert told is not None
        told.finish(numbers(run))
    assert heard.steps("grpo") == list(range(40))
    assert [step for name, step, _ in heard.texts if name == "grpo/completions"] == [0, 10, 20, 30]
    assert heard.steps("checkpoints") == [0, 1, 2, 3]
    last = next(values for stage, step, values in heard.points if (stage, step) == ("checkpoints", 3))
    assert last["problems.pass_at_1"] == numbers(run).stages["edited"]["problems"]["pass_at_1"].value
    assert all(math.isfinite(value) for _, _, values in heard.points for value in values.values())
    assert heard.texts[-1][0] == "report" and "(right)" in "".join(text for _, _, text in heard.texts)


def test_a_tracker_that_fails_ends_the_telling_and_not_the_run(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(tracking, "say", said.append)
    heard.breaks = True
    with tracked(Recipe(), tmp_path, "wandb"):
        write_line(tmp_path / "logs" / "sft.jsonl", {"step": 0, "loss": 3.0})
        write_line(tmp_path / "logs" / "sft.jsonl", {"step": 1, "loss": 3.0})
    assert said == ["wandb: ConnectionError: no route. It is told no more; the run goes on without it."]
    heard.breaks = False
    with tracked(Recipe(), tmp_path, "wandb"):
        pass
    assert heard.steps("sft") == [0, 1], "what it has missed it is told by the next call"


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--track wandb needs wandb.*pip install 'nanogpt-edit\[wandb\]'"):
        open_tracker("wandb", Started(tmp_path, "x", {}))
    with tracked(Recipe(), tmp_path, None) as nobody:
        assert nobody is None
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own dependencies
def test_tensorboard_shows_two_calls_as_one_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = tmp_path / "logs" / "sft.jsonl"
    for step in (0, 1):
        with tracked(Recipe(), tmp_path, "tensorboard"):
            write_line(log, {"step": step, "loss": 3.0 - step})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(point.step, point.value) for point in found.Scalars("sft/loss")] == [(0, 3.0), (1, 2.0)]
