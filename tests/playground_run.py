"""A served run with a small model that knows a few facts, for the tests of the playground."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edit_world import PLAIN, trained_model
from report_run import make_run
from serving_run import Served, served

from nanogpt_edit.pipeline.recipe import load_recipe, save_recipe
from nanogpt_edit.serving.limits import Limits
from nanogpt_edit.serving.models import Shelf


@contextmanager
def served_run(folder: Path, *, token: str | None = None) -> Iterator[Served]:
    """The run's folder holds all that a report reads; its model, "small", is edited by settings that suit it."""
    run = make_run(folder / "tiny", problems=12, samples=4, steps=12)
    recipe = load_recipe(run / "recipe.toml")
    save_recipe(
        replace(recipe, edit=replace(PLAIN, covariance_tokens=1000, n_prefixes=2, steps=40)), run / "recipe.toml"
    )
    model = trained_model()
    model.source = run / "small"
    model.source.mkdir()
    shelf = Shelf(run_folder=run)
    shelf.add("small", model, source=str(model.source))
    with served(shelf, limits=Limits(token=token)) as found:
        yield found
