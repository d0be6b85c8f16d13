"""A recipe, from nothing to the report: the stages in order.

Each stage reads its inputs from the run folder and leaves its result there, complete or not at all. So a stage whose
result is there is skipped, a half-done one goes on from its saved state, and a killed run is continued by calling it
again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nanogpt_edit import report
from nanogpt_edit.common import distributed
from nanogpt_edit.common.device import choose_device
from nanogpt_edit.common.terminal import say, show
from nanogpt_edit.pipeline.checks import check_data, check_sizes
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.measure import compare, measure, trace
from nanogpt_edit.pipeline.recipe import Recipe
from nanogpt_edit.pipeline.stages import Stage, Start, data_of, make_model, stages_of
from nanogpt_edit.pipeline.trackers.tracker import TrackerName
from nanogpt_edit.pipeline.tracking import tracked

EXPECTATION_FAILED = 3


def run(recipe: Recipe, out: Path, *, track: TrackerName | None = None) -> int:
    """Run `recipe` in the folder `out`, or go on where an earlier call stopped -> exit status (3: expectation failed).

    A tracker, if any, is told of it while it goes. Raises UserError for bad input, before anything long begins.
    """
    check_sizes(recipe)
    folder = RunFolder(out)
    with folder.locked():
        recipe = folder.with_threads(recipe)
        folder.keep_recipe(recipe)
        with tracked(recipe, out, track) as tracking:
            remarks = make_all(recipe, folder)
            if not distributed.is_first():
                return 0
            with folder.timed("report"):
                summary = report.build(out)
            if tracking is not None:
                tracking.finish(summary)
    show(report.terminal_summary(summary))
    say(f"The report: {out / 'report.html'}")
    for remark in remarks:
        say(remark)
    return EXPECTATION_FAILED if summary.any_failed else 0


def make_all(recipe: Recipe, folder: RunFolder) -> list[str]:
    """Every stage of the recipe, made and measured -> what a person should read last."""
    inputs, device = RunInputs(recipe), choose_device(recipe.device, threads=recipe.threads)
    with step(folder, "world"):
        prepare(inputs, folder, device)
    start: Start = recipe.model.source
    before: Stage | None = None
    remarks: list[str] = []
    for stage in stages_of(recipe):
        with step(folder, stage.name):
            remarks += make_model(stage, inputs, folder, device, start)
        with step(folder, f"evaluate_{stage.name}"):
            measure_stage(stage, before, inputs, folder, device)
        start, before = folder.model(stage.name), stage
    if "edited" in recipe.stages:
        with step(folder, "trace"):
            if distributed.is_first():
                trace(inputs, folder, device)
    return remarks


@contextmanager
def step(folder: RunFolder, name: str) -> Iterator[None]:
    """A part of a run: timed under its name, and over when it is over in every process."""
    with folder.timed(name):
        yield
    distributed.barrier()


def prepare(inputs: RunInputs, folder: RunFolder, device: torch.device) -> None:
    """Read and check all data before anything long begins."""
    folder.keep_environment(device)
    check_data(inputs, *data_of(inputs.recipe))
    folder.keep_environment(device, **inputs.counts)
    facts, problems = len(inputs.world.statements), len(inputs.problems.train)
    to_come = f", {len(inputs.edits)} edits to come" if inputs.edits else ""
    say(f"World: {facts} facts, {problems} problems{to_come}.")


def measure_stage(
    stage: Stage, before: Stage | None, inputs: RunInputs, folder: RunFolder, device: torch.device
) -> None:
    """Measure one checkpoint, and compare it in pairs with the one before."""
    model = measure(inputs, folder, device, stage.name, samples=stage.samples(inputs.recipe.evaluate))
    if not distributed.is_first():
        return
    if model is not None and stage.after is not None:
        stage.after(model, folder)
    if before is not None:
        compare(folder, before.name, stage.name)
