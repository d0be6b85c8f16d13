"""`nanogpt-edit evaluate MODEL`: what a checkpoint can do, with intervals and the raw records behind them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import Tensor

from nanogpt_edit import processes
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.show import show_metrics
from nanogpt_edit.commands.speaker import load_speaker
from nanogpt_edit.data.problems import Problem, ProblemsConfig, load_splits, with_room
from nanogpt_edit.data.world import WorldConfig, make_world, sanity_arithmetic
from nanogpt_edit.errors import about
from nanogpt_edit.evaluate.probes import PROBES
from nanogpt_edit.evaluate.suite import EvaluateConfig, Skills, evaluate
from nanogpt_edit.evaluate.text import held_out_text
from nanogpt_edit.files import make_folder
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.progress import say
from nanogpt_edit.recipe import Recipe, load_recipe, recipe_beside, refuse_unread
from nanogpt_edit.run_checks import check_sizes

Split = Literal["validation", "test", "train"]


@dataclass(frozen=True)
class Evaluate:
    """Measure a model on word problems, simple arithmetic and non-math prompts, with 95% intervals over problems.

    For a model in the folder of a run, what is not given here is as in the run's recipe.toml.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A model directory, a hub name (gpt2), or a nanoGPT ckpt.pt."""
    split: Split = "validation"
    """Which problems. Decide on validation; touch test once, at the end."""
    out: Path | None = None
    """Folder for the metrics (.json) and every completion (.jsonl), as `compare` reads them (None: only print)."""
    seed: int = 0
    """Cuts the validation problems from the training problems, and draws the embedded world's."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, …"""
    problems: ProblemsConfig = ProblemsConfig()
    world: WorldConfig = WorldConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


def run(arguments: list[str]) -> int:
    """The verb `evaluate`."""
    chosen = as_in_its_run(parse(Evaluate, arguments, verb="evaluate"), arguments)
    check_sizes(Recipe(world=chosen.world, evaluate=chosen.evaluate))
    if chosen.out is not None:
        make_folder(chosen.out)
    model, tokenizer = load_speaker(chosen.model, chosen.device)
    block_size, source = model.config.block_size, chosen.evaluate.text
    problems, notes = with_room(problems_of(chosen), tokenizer, room=1, block_size=block_size)
    for note in notes:
        say(note)
    skills = Skills(
        problems=problems,
        arithmetic=sanity_arithmetic(),
        probes=PROBES,
        text=None if source is None else text_of(source, tokenizer, block_size=block_size),
    )
    found = evaluate(model, skills, chosen.evaluate, stage=Path(chosen.model).name)
    show_metrics(found.metrics)
    if chosen.out is not None and processes.is_first():
        found.save(chosen.out)
        say(f"Records: {chosen.out / found.stage}.jsonl")
    return 0


def as_in_its_run(chosen: Evaluate, arguments: list[str]) -> Evaluate:
    """The same arguments over the settings of the run that the model stands in, where it stands in one.

    Otherwise a model of the embedded world would meet harder problems than it was trained for, or even, with another
    seed, problems it was trained on.
    """
    path = recipe_beside(chosen.model)
    if path is None:
        refuse_unread(Recipe(world=chosen.world, problems=chosen.problems), Recipe())
        return chosen
    recipe = load_recipe(path)
    say(f"Problems and settings are those of {path}, except what is given here.")
    default = replace(
        chosen,
        seed=recipe.seed,
        problems=recipe.problems,
        world=recipe.world.seeded(recipe.seed),
        evaluate=recipe.evaluate,
    )
    merged = parse(Evaluate, arguments, verb="evaluate", default=default)
    refuse_unread(Recipe(world=merged.world, problems=merged.problems), Recipe(world=default.world))
    return merged


def text_of(source: str, tokenizer: Tokenizer, *, block_size: int) -> Tensor:
    """The held-out text in blocks. Raises UserError that begins with the argument's name."""
    with about("evaluate.text"):
        return held_out_text(source, tokenizer, block_size=block_size)


def problems_of(chosen: Evaluate) -> tuple[Problem, ...]:
    """The problems of the chosen split, of the given data or of the embedded world."""
    if chosen.problems.path is None:
        splits = make_world(chosen.world.seeded(chosen.seed)).problems
    else:
        splits = load_splits(chosen.problems, seed=chosen.seed)
    for note in splits.notes:
        say(note)
    by_name = {"validation": splits.validation, "test": splits.test, "train": splits.train}
    return by_name[chosen.split]
