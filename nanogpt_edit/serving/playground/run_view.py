"""What the playground shows of a run, finished or under way: read anew from its files each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.records import read_json_as
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.recipe import load_recipe
from nanogpt_edit.pipeline.records import STAGE_NAMES, Timing
from nanogpt_edit.report import labels
from nanogpt_edit.report.ledger import Cell, Ledger, make_ledger
from nanogpt_edit.report.read import LOGS, read_run
from nanogpt_edit.training.records import read_log, read_rollouts, rollout_files

MOST_POINTS = 300
SHOWN_METRICS = {
    "pretrain": ("loss", "val_loss"),
    "sft": ("loss", "val_loss"),
    "grpo": ("reward", "accuracy", "val_pass_at_1", "well_formed", "mean_tokens", "entropy", "kl", "groups_dropped"),
}


@dataclass(frozen=True)
class StageView:
    """One stage of a run."""

    name: str
    state: str
    """to come, under way, being measured, or done; stopped where it was begun and nobody is at work."""
    steps: int | None
    """How many its recipe asks for; None where it has none."""
    step: int | None
    """The last one in its log."""
    seconds: float | None


def stages(folder: Path) -> dict[str, object]:
    """What is done, what is under way, and whether anybody is at work."""
    recipe = load_recipe(folder / "recipe.toml")
    timing = read_json_as(Timing, folder / "timing.json").stages if (folder / "timing.json").exists() else {}
    steps = {"base": recipe.pretrain.steps, "sft": recipe.sft.steps, "grpo": recipe.grpo.steps}
    if recipe.model.source is not None:
        del steps["base"]
    running, its_turn, found = RunFolder(folder).in_use(), True, []
    for name in recipe.stages:
        log = read_log(path) if (path := log_of(folder, name)).exists() else {}
        made, measured = (folder / name / "config.json").exists(), (folder / "eval" / f"{name}.json").exists()
        state = state_of(made=made, measured=measured, begun=bool(log), running=running, its_turn=its_turn)
        step = int(max(log)) + 1 if log else None
        found.append(asdict(StageView(name, state, steps.get(name), step, timing.get(name))))
        its_turn = measured
    return {
        "name": folder.name,
        "running": running,
        "stages": found,
        "has_report": (folder / "report.html").exists(),
        "rollout_steps": list(rollout_files(folder / "logs" / "rollouts")),
    }


def state_of(*, made: bool, measured: bool, begun: bool, running: bool, its_turn: bool) -> str:
    """Of a stage whose model is `made` and `measured`, or that has `begun` to write its log; an edit writes none."""
    if made:
        return "being measured" if running and not measured else "done"
    if running and (begun or its_turn):
        return "under way"
    return "stopped" if begun else "to come"


def log_of(folder: Path, stage: str) -> Path:
    """The log of a stage; the base model's is called after what makes it."""
    return folder / "logs" / f"{'pretrain' if stage == STAGE_NAMES[0] else stage}.jsonl"


def curves(folder: Path) -> dict[str, object]:
    """Per stage and metric the points of its log, thinned: {"sft": {"loss": {"steps": […], "values": […]}}}."""
    found: dict[str, object] = {}
    for name in LOGS:
        path = folder / "logs" / f"{name}.jsonl"
        log = read_log(path) if path.exists() else {}
        shown = {metric: _points(log, metric) for metric in SHOWN_METRICS[name]}
        found[name] = {metric: points for metric, points in shown.items() if points["steps"]}
    return {name: series for name, series in found.items() if series}


def _points(log: Mapping[float, Mapping[str, float | None]], metric: str) -> dict[str, list[float]]:
    points = [(step, value) for step, line in log.items() if (value := line.get(metric)) is not None]
    kept = points[:: max(1, -(-len(points) // MOST_POINTS))]
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return {"steps": [step for step, _ in kept], "values": [value for _, value in kept]}


def rollouts(folder: Path, step: int | None) -> dict[str, object]:
    """The completions of a step of GRPO that are told token by token, those of one problem together; the newest step
    where none is named. Raises UserError for a step that has left none."""
    files = rollout_files(folder / "logs" / "rollouts")
    if not files:
        return {"step": None, "rollouts": []}
    chosen = max(files) if step is None else step
    if chosen not in files:
        raise UserError(f"step {chosen} has left no rollouts; there are steps {min(files)} to {max(files)}.")
    everyone = read_rollouts(files[chosen])
    told = sorted((each for each in everyone if each.told), key=lambda each: (each.group, -each.advantage))
    correct = sum(each.correct for each in everyone)
    return {"step": chosen, "n": len(everyone), "correct": correct, "rollouts": [asdict(each) for each in told]}


def ledger(folder: Path) -> dict[str, object]:
    """What each step gained and cost, as the report says it; empty before anything was measured."""
    found: Ledger = make_ledger(read_run(folder))
    return {
        "columns": [labels.column_label(column) for column in found.columns],
        "rows": [
            {
                "stage": labels.stage_label(row.stage),
                "outcome": row.outcome if row.before else "",
                "cells": [
                    None if cell is None else _cell(column[1], cell)
                    for column, cell in zip(found.columns, row.cells, strict=True)
                ],
            }
            for row in found.rows
        ],
    }


def _cell(metric: str, cell: Cell) -> dict[str, object]:
    told = {
        "value": labels.quantity(metric, cell.value.value),
        "low": labels.quantity(metric, cell.value.low),
        "high": labels.quantity(metric, cell.value.high),
    }
    if cell.verdict is not None and cell.delta is not None:
        told |= {"mark": labels.ARROWS[cell.verdict], "verdict": cell.verdict}
        told |= {"change": labels.signed(metric, cell.delta)}
    return dict(told)
