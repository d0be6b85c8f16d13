"""`nanogpt-edit run RECIPE`: a whole recipe, from nothing to the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from nanogpt_edit import pipeline
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.errors import UserError
from nanogpt_edit.progress import say
from nanogpt_edit.recipe import Recipe, load_recipe, packaged_recipes, refuse_unread


@dataclass(frozen=True)
class Run:
    """Run a recipe: pretrain, SFT, GRPO, evaluate, edit, report.

    The recipe comes first: the name of a packaged one, or a path to a .toml file. Any field of it can be overridden.
    Finished stages are skipped and a half-finished one is resumed. Exits with 3 when an expectation fails.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""


def run(arguments: list[str]) -> int:
    """The verb `run`."""
    name, recipe, rest = named_recipe(arguments, verb="run")
    chosen = parse(Run, rest, verb=f"run {name}", default=Run(recipe=recipe, out=Path("runs") / recipe.name))
    resolved = chosen.recipe
    refuse_unread(resolved, recipe)
    if resolved.expect and resolved.problems.path != recipe.problems.path:
        say("The recipe's expectations are about its own problems; with others they are left out.")
        resolved = replace(resolved, expect={})
    return pipeline.run(resolved, chosen.out)


def named_recipe(arguments: list[str], *, verb: str) -> tuple[str, Recipe, list[str]]:
    """The recipe that comes first among the arguments: its name, itself, and the other arguments.

    Raises UserError when none is named; only --help may stand without one, and shows the packaged tiny's fields.
    """
    asks_help = bool({"-h", "--help"} & set(arguments))
    if asks_help and arguments[0].startswith("-"):
        arguments = ["tiny", *arguments]
    if not arguments or arguments[0].startswith("-"):
        raise UserError(
            f"name the recipe first, as in: nanogpt-edit {verb} tiny --out runs/tiny. "
            f"Packaged: {', '.join(packaged_recipes())}; a path to a .toml file works too."
        )
    return arguments[0], load_recipe(arguments[0]), arguments[1:]
