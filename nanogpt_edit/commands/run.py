"""`nanogpt-edit run RECIPE`: a whole recipe, from nothing to the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nanogpt_edit.commands.arguments import Run, named_recipe
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.common.terminal import say
from nanogpt_edit.pipeline import pipeline
from nanogpt_edit.pipeline.checks import summary_paths
from nanogpt_edit.pipeline.recipe import refuse_unread


def run(arguments: list[str]) -> int:
    """The verb `run`."""
    name, recipe, rest = named_recipe(arguments, verb="run")
    chosen = parse(Run, rest, verb=f"run {name}", default=Run(recipe=recipe, out=Path("runs") / recipe.name))
    resolved = chosen.recipe
    refuse_unread(resolved, recipe)
    if resolved.expect and resolved.problems.path != recipe.problems.path:
        say("The recipe's expectations are about its own problems; with others they are left out.")
        resolved = replace(resolved, expect={})
    elif resolved.stages != recipe.stages:
        kept = summary_paths(resolved)
        resolved = replace(resolved, expect={path: bound for path, bound in recipe.expect.items() if path in kept})
    return pipeline.run(resolved, chosen.out, track=chosen.track)
