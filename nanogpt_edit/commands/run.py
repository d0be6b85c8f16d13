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
from nanogpt_edit.recipe import Recipe, load_recipe, packaged_recipes


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
    asks_help = bool({"-h", "--help"} & set(arguments))
    if asks_help and arguments[0].startswith("-"):
        arguments = ["tiny", *arguments]
    if not arguments or arguments[0].startswith("-"):
        raise UserError(
            f"name the recipe first, as in: nanogpt-edit run tiny --out runs/tiny. "
            f"Packaged: {', '.join(packaged_recipes())}; a path to a .toml file works too."
        )
    recipe = load_recipe(arguments[0])
    default = Run(recipe=recipe, out=Path("runs") / recipe.name)
    chosen = parse(Run, arguments[1:], verb=f"run {arguments[0]}", default=default)
    resolved = chosen.recipe
    if resolved.expect and resolved.problems.path != recipe.problems.path:
        say("The recipe's expectations are about its own problems; with others they are left out.")
        resolved = replace(resolved, expect={})
    return pipeline.run(resolved, chosen.out)
