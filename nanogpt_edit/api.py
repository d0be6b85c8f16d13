"""The verbs of `import nanogpt_edit as ne` that need several rooms: the shortest way to each result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from nanogpt_edit.checkpoint.checkpoint import load
from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.device import choose_device
from nanogpt_edit.data.sources import Facts, Problems, facts_of, problems_of
from nanogpt_edit.data.splits import ProblemsConfig, split_problems
from nanogpt_edit.data.text import read_text
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
from nanogpt_edit.pipeline import pipeline, stages
from nanogpt_edit.pipeline.alone import make_alone
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.recipe import GRPO_ALONE, SFT_ALONE, ModelConfig, Recipe, load_recipe
from nanogpt_edit.pipeline.results import Results, Trained
from nanogpt_edit.pipeline.spared import recipe_for_edit, spared_text
from nanogpt_edit.pipeline.stages import Stage
from nanogpt_edit.report import notebook as notebook  # so that what it has words for is shown in them
from nanogpt_edit.tracing import tracing
from nanogpt_edit.tracing.config import TraceConfig
from nanogpt_edit.tracing.view import Trace
from nanogpt_edit.training.config import LoopConfig
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.pretrain_config import PretrainConfig
from nanogpt_edit.training.sft_config import SFTConfig

Text = str | Path | Sequence[str]
"""A file, a folder, a hub data set, or documents."""
Config = TypeVar("Config", bound=LoopConfig)


@checked
def pretrain(
    *,
    out: str | Path,
    model: ModelConfig | None = None,
    problems: Problems | None = None,
    text: Text | None = None,
    config: PretrainConfig | None = None,
    seed: int = 0,
    **fields: object,
) -> Trained:
    """A new model of the sizes in `model`, trained on the embedded world, the questions of `problems`, and `text`.

    `config` has the fields of a recipe's [pretrain], `fields` are single ones on top (steps=300, …). The model is saved
    in OUT/base, its log in OUT/logs; called again with the same arguments, it goes on where it was, or is loaded.
    """
    recipe = Recipe(model=model or ModelConfig(), pretrain=_with(config or PretrainConfig(), fields))
    return _train(dataclasses.replace(stages.BASE, make=stages.make_base), recipe, None, out, problems, text, seed)


@checked
def sft(
    model: GPT,
    problems: Problems | None = None,
    *,
    out: str | Path,
    text: Text | None = None,
    config: SFTConfig | None = None,
    seed: int = 0,
    **fields: object,
) -> Trained:
    """Fine-tune `model` itself on worked solutions, and leave the weights with the lowest validation loss in it.

    `problems` are a file, a folder, a hub data set, or records, of which up to a tenth validates (None: those of the
    embedded world); `chats="talks.jsonl"` takes conversations in their place. `text` is mixed in against forgetting, as
    much as `replay` says. `config` has the fields of a recipe's [sft], `fields` are single ones on top. The model is
    saved in OUT/sft; called again with the same arguments, it goes on where it was, or is loaded.
    """
    return _train(stages.SFT, Recipe(sft=_with(config or SFT_ALONE, fields)), model, out, problems, text, seed)


@checked
def grpo(
    model: GPT,
    problems: Problems | None = None,
    *,
    out: str | Path,
    config: GRPOConfig | None = None,
    seed: int = 0,
    **fields: object,
) -> Trained:
    """Improve `model` itself by reinforcement learning on problems with known answers; it should know their form.

    `problems` are as in `ne.sft`. `config` has the fields of a recipe's [grpo], `fields` are single ones on top. Every
    completion is kept in OUT/logs/rollouts, the model in OUT/grpo; called again with the same arguments, it goes on
    where it was, or is loaded.
    """
    return _train(stages.GRPO, Recipe(grpo=_with(config or GRPO_ALONE, fields)), model, out, problems, None, seed)


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
def run(recipe: str | Path | Recipe, *, out: str | Path) -> Results:
    """Run a recipe (a packaged name, a path, or a `Recipe`) in the folder `out`; called again, it goes on.

    What comes back has the ledger, every measure and the figures of the report; its `status` is 0, or 3 when an
    expectation of the recipe failed.
    """
    status = pipeline.run(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), Path(out))
    return Results(Path(out), status)


def _with(settings: Config, changed: Mapping[str, object]) -> Config:
    """Raises UserError for a field that is none, with the nearest, and for a wrong value."""
    return dataclasses.replace(settings, **dict[str, Any](changed))


def _train(
    stage: Stage,
    recipe: Recipe,
    model: GPT | None,
    out: str | Path,
    problems: Problems | None,
    text: Text | None,
    seed: int,
) -> Trained:
    """One stage of `recipe` by itself, on what was given."""
    recipe = dataclasses.replace(recipe, name=stage.name, seed=seed)
    if model is not None:
        source = ModelConfig(source=str(model.source or "a model in memory"))
        recipe = dataclasses.replace(recipe, model=source, device=str(model.device))
    given = None
    if isinstance(problems, str | Path):
        recipe = dataclasses.replace(recipe, problems=ProblemsConfig(path=str(problems)))
    elif problems is not None:
        chosen = problems_of(problems)
        given = split_problems(chosen, validation=recipe.problems.validation, seed=seed)
        digest = sha256(repr(chosen).encode()).hexdigest()[:12]
        named = ProblemsConfig(path=f"{len(chosen)} problems given in Python ({digest})")
        recipe = dataclasses.replace(recipe, problems=named)
    documents = read_text(text) if isinstance(text, str | Path) else text
    inputs = RunInputs(recipe, documents_given=documents or (() if given else None), problems_given=given)
    folder, device = RunFolder(Path(out)), choose_device(recipe.device)
    done = folder.has_model(stage.name)
    make_alone(stage, inputs, folder, device, model, settings=recipe)
    if done or model is None:
        model = load(folder.model(stage.name), device=device)
    return Trained(model, stage.name, Path(out))
