"""`nanogpt-edit evaluate MODEL`: what a checkpoint can do, with intervals and the raw records behind them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_edit.checkpoint.checkpoint import load
from nanogpt_edit.commands.arguments import Evaluate, Split
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.show import show_json, show_metrics
from nanogpt_edit.commands.speaker import load_speaker
from nanogpt_edit.common import distributed
from nanogpt_edit.common.device import autocast, choose_device
from nanogpt_edit.common.errors import about
from nanogpt_edit.common.files import folder_to_fill
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.splits import ProblemSplits, load_splits
from nanogpt_edit.data.world.world import make_world, sanity_arithmetic
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.evaluation.perplexity import held_out_text
from nanogpt_edit.evaluation.probes import PROBES
from nanogpt_edit.evaluation.records import Evaluation
from nanogpt_edit.evaluation.suite import Skills, evaluate
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.pipeline import fitted
from nanogpt_edit.pipeline.checks import check_sizes
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.recipe import Recipe, load_recipe, recipe_beside, refuse_unread
from nanogpt_edit.pipeline.stages import STAGES


def run(arguments: list[str]) -> int:
    """The verb `evaluate`."""
    chosen = parse(Evaluate, arguments, verb="evaluate")
    path = recipe_beside(chosen.model)
    if path is not None:
        recipe = load_recipe(path)
        chosen = over_recipe(recipe, chosen, arguments)
        say(
            f"Measured as the report of {path.parent} does: its {chosen.split} problems, arithmetic, facts, probes and "
            "held-out text, with the settings of its recipe.toml, except what is given here."
        )
    else:
        refuse_unread(Recipe(world=chosen.world, problems=chosen.problems), Recipe())
        chosen = replace(chosen, split=chosen.split or "validation")
        say(f"Measured on {chosen.split} problems, arithmetic and probes.")
    check_sizes(Recipe(world=chosen.world, evaluate=chosen.evaluate))
    with folder_to_fill(chosen.out):
        found = measure_alone(chosen) if path is None else measure_in_run(chosen, recipe)
        (show_json if chosen.json else show_metrics)(found.metrics)
        if chosen.out is not None and distributed.is_first():
            found.save(chosen.out)
            say(f"Records: {chosen.out / found.stage}.jsonl")
    return 0


def over_recipe(recipe: Recipe, chosen: Evaluate, arguments: list[str]) -> Evaluate:
    """The same arguments over the settings of the run that the model stands in.

    Otherwise a model of the embedded world would meet harder problems than it was trained for, or even, with another
    seed, problems it was trained on.
    """
    default = replace(
        chosen,
        split=chosen.split or "test",
        seed=recipe.seed,
        problems=recipe.problems,
        world=recipe.world.seeded(recipe.seed),
        evaluate=settings_in_run(recipe, Path(chosen.model).name),
    )
    merged = parse(Evaluate, arguments, verb="evaluate", default=default)
    refuse_unread(Recipe(world=merged.world, problems=merged.problems), Recipe(world=default.world))
    return merged


def settings_in_run(recipe: Recipe, stage: str) -> EvaluateConfig:
    """How the pipeline measures a stage's model; any other that lies in a run's folder, like most of them."""
    samples: dict[str, int] = {each.name: each.samples(recipe.evaluate) for each in STAGES}
    return replace(recipe.evaluate, samples=samples.get(stage, recipe.evaluate.samples))


def measure_in_run(chosen: Evaluate, recipe: Recipe) -> Evaluation:
    """What the pipeline measures of a checkpoint, with what was chosen in place of the recipe's settings."""
    inputs = RunInputs(
        replace(recipe, seed=chosen.seed, problems=chosen.problems, world=chosen.world, evaluate=chosen.evaluate)
    )
    device = choose_device(chosen.device, threads=recipe.threads)
    problems = said(inputs.problems, chosen.split)
    model = load(chosen.model, device=device, dtype=torch.float32)
    stage = Path(chosen.model).name
    skills = fitted.skills(inputs, model, problems, what=f"evaluate {stage}")
    with autocast(device, recipe.precision):
        return evaluate(model, skills, fitted.measuring(inputs, model), stage=stage)


def measure_alone(chosen: Evaluate) -> Evaluation:
    """A model that stands in no run: problems, arithmetic, probes, and text where it is given."""
    model, tokenizer = load_speaker(chosen.model, chosen.device)
    block_size, source = model.config.block_size, chosen.evaluate.text
    skills = Skills(
        problems=fitted.fitting(problems_of(chosen), model, room=1, what="problems"),
        arithmetic=fitted.fitting(sanity_arithmetic(), model, room=1, what="arithmetic"),
        probes=fitted.fitting(PROBES, model, room=1, what="probes"),
        text=None if source is None else text_of(source, tokenizer, block_size=block_size),
    )
    return evaluate(model, skills, chosen.evaluate, stage=Path(chosen.model).name)


def text_of(source: str, tokenizer: Tokenizer, *, block_size: int) -> Tensor:
    """The held-out text in blocks. Raises UserError that begins with the argument's name."""
    with about("evaluate.text"):
        return held_out_text(source, tokenizer, block_size=block_size)


def problems_of(chosen: Evaluate) -> tuple[Problem, ...]:
    """The problems of the chosen split, of the given data or of the embedded world."""
    if chosen.problems.path is None:
        return said(make_world(chosen.world.seeded(chosen.seed)).problems, chosen.split)
    return said(load_splits(chosen.problems, seed=chosen.seed), chosen.split)


def said(splits: ProblemSplits, split: Split | None) -> tuple[Problem, ...]:
    """One of the splits; what was cut or left out is said."""
    for note in splits.notes:
        say(note)
    by_name = {"validation": splits.validation, "test": splits.test, "train": splits.train}
    return by_name[split or "validation"]
