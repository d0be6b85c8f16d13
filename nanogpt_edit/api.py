"""The verbs of `import nanogpt_edit as ne` that need several rooms: the shortest way to each result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.data.sources import Facts, Problems, facts_of, problems_of
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch import EditPatch
from nanogpt_edit.engine.generate import check_samples
from nanogpt_edit.evaluation import suite
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.evaluation.fact_scores import Scores, sum_up
from nanogpt_edit.evaluation.facts import measure_facts
from nanogpt_edit.evaluation.records import Evaluation
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline import pipeline
from nanogpt_edit.pipeline.recipe import Recipe, load_recipe
from nanogpt_edit.pipeline.spared import recipe_for_edit, spared_text
from nanogpt_edit.tracing import tracing
from nanogpt_edit.tracing.config import TraceConfig
from nanogpt_edit.tracing.view import Trace


@checked
def edit(
    model: GPT,
    facts: Facts,
    *,
    text: str | Path | Sequence[str] | None = None,
    config: EditConfig | None = None,
    recipe: str | Path | None = None,
    **fields: object,
) -> EditPatch:
    """The patch that makes `model` say every fact's `target_new`; the model itself is left as it is.

    A model loaded from the folder of a run takes the [edit] settings of that run's recipe, and spares the text that the
    run's own edit spares; `recipe` names another. Which, is said. `config` takes the place of these settings, `fields`
    are single ones on top (method="memit", layers=(0, 1), …). `text` takes the place of the recipe's plain text: a
    file, a folder, a hub data set, or a list of documents; without any, a model from elsewhere writes some itself.
    Raises UserError for a field or a method that is none, and for whatever `edit_model` refuses.
    """
    taken = recipe_for_edit(model.source, recipe)
    settings, chosen = (config or taken.edit).with_fields(fields), facts_of(facts)
    blocks = spared_text(model, chosen, taken, text=text) if settings.needs_text else None
    return edit_model(model, chosen, settings, covariance_blocks=blocks)


@checked
def score(model: GPT, facts: Facts) -> Scores:
    """How far `model`, as it is now, says the new answers of `facts`, and still the old ones to their neighbours."""
    return sum_up(measure_facts(model, facts_of(facts)))


@checked
def trace(
    model: GPT, prompt: str, subject: str, *, target: str | None = None, config: TraceConfig | None = None
) -> Trace:
    """Causal tracing of one prompt: which states, restored, bring the answer back when the subject is corrupted.

    `target` is the answer that is followed (None: what the model itself says next).
    Raises UserError when the subject is not in the prompt.
    """
    return Trace(tracing.trace(model, prompt, subject, target, config))


@checked
def evaluate(model: GPT, problems: Problems, *, n: int = 16, config: EvaluateConfig | None = None) -> Evaluation:
    """`n` graded completions of each problem: `.metrics["problems"]["pass_at_1"]` with its interval, raw `.records`."""
    check_samples(n)
    chosen = problems_of(problems)
    settings = dataclasses.replace(config or EvaluateConfig(), problems=len(chosen), samples=n)
    return suite.evaluate(model, suite.Skills(problems=chosen), settings, stage="model")


@checked
def run(recipe: str | Path | Recipe, *, out: str | Path) -> int:
    """Run a recipe (a packaged name, a path, or a `Recipe`) in the folder `out`; called again, it goes on.

    Returns 0, or 3 when an expectation of the recipe failed.
    """
    return pipeline.run(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), Path(out))
