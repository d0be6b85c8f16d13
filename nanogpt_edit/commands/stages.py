"""The verbs `pretrain`, `sft`, `grpo` and `edit`: one stage of a run alone, from any model.

Each is a stage of `pipeline/stages.py`, in a folder laid out like a run's: the model, its log, the settings. A stage
that was interrupted goes on, and one that is done is left alone.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from functools import partial

import tomli_w
import torch

from nanogpt_edit.checkpoint.checkpoint import load
from nanogpt_edit.commands.arguments import GRPO, SFT, Common, Edit, Pretrain, Training
from nanogpt_edit.commands.flags import given_flags
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.common.device import choose_device
from nanogpt_edit.common.files import cache_folder, write_text
from nanogpt_edit.common.settings import to_table
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline import fitted, stages
from nanogpt_edit.pipeline.alone import make_alone
from nanogpt_edit.pipeline.checks import check_sizes
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import Part, RunInputs
from nanogpt_edit.pipeline.recipe import ModelConfig, Recipe, refuse_unread
from nanogpt_edit.pipeline.spared import recipe_for_edit, spared_blocks
from nanogpt_edit.pipeline.stages import Stage
from nanogpt_edit.pipeline.sweep import HEADER, sweep
from nanogpt_edit.training.pretrain_config import BaseText, PretrainConfig

NOTHING_GIVEN = Recipe()


def pretrain(arguments: list[str]) -> int:
    """The verb `pretrain`."""
    chosen = parse(Pretrain, arguments, verb="pretrain")
    recipe = Recipe(model=chosen.model, world=chosen.world, problems=chosen.problems, pretrain=chosen.pretrain)
    return run_alone(replace(stages.BASE, make=stages.make_base), chosen, recipe)


def sft(arguments: list[str]) -> int:
    """The verb `sft`."""
    chosen = parse(SFT, arguments, verb="sft")
    recipe = Recipe(
        model=ModelConfig(source=chosen.model),
        world=chosen.world,
        problems=chosen.problems,
        pretrain=PretrainConfig(**asdict(chosen.pretrain)),
        sft=chosen.sft,
    )
    talks: tuple[Part, ...] = ("chats", "extra_text", "replay_source")  # the problems are not learned
    return run_alone(stages.SFT if chosen.sft.chats is None else replace(stages.SFT, reads=talks), chosen, recipe)


def grpo(arguments: list[str]) -> int:
    """The verb `grpo`."""
    chosen = parse(GRPO, arguments, verb="grpo")
    start = ModelConfig(source=chosen.model)
    recipe = Recipe(model=start, world=chosen.world, problems=chosen.problems, grpo=chosen.grpo)
    return run_alone(stages.GRPO, chosen, recipe)


def edit(arguments: list[str]) -> int:
    """The verb `edit`."""
    given = parse(Edit, arguments, verb="edit")
    taken = recipe_for_edit(given.model, given.recipe)
    default = over_recipe(given, taken)
    chosen = parse(Edit, arguments, verb="edit", default=default)
    if chosen.edit.preset == "auto":
        flags = [flag.field for flag in given_flags(Edit, arguments, default=default)]
        settings = tuple(name.removeprefix("edit.") for name in flags if name.startswith("edit."))
        chosen = replace(chosen, edit=replace(chosen.edit, given=settings))
    recipe = Recipe(
        seed=chosen.seed,
        model=ModelConfig(source=chosen.model),
        world=chosen.world,
        problems=chosen.problems,
        pretrain=PretrainConfig(**asdict(chosen.pretrain)),
        edit=chosen.edit,
        evaluate=EvaluateConfig(every_form=chosen.every_form),
        facts=chosen.facts,
    )
    unread = Recipe(world=default.world)
    if chosen.sweep:
        refuse_unread(recipe, unread)
        return choose_settings(chosen, recipe)
    make = partial(stages.make_edited, cache_dir=cache_folder())
    own: tuple[Part, ...] = () if recipe.problems.path is None else ("problems",)  # the embedded ones are not learned
    edited = replace(stages.EDITED, make=make, reads=(*own, *stages.EDITED.reads))
    return run_alone(edited, chosen, recipe, default=unread)


def over_recipe(chosen: Edit, recipe: Recipe) -> Edit:
    """The same arguments over the settings of `recipe`."""
    base_text = {each.name: getattr(recipe.pretrain, each.name) for each in fields(BaseText)}
    return replace(
        chosen,
        seed=recipe.seed,
        world=recipe.world.seeded(recipe.seed),
        problems=recipe.problems,
        pretrain=BaseText(**base_text),
        edit=recipe.edit,
        every_form=recipe.evaluate.every_form,
    )


def choose_settings(chosen: Edit, recipe: Recipe) -> int:
    """Sweep, print the table and what the settings are worth on the other half of the facts, write them."""
    check_sizes(recipe)
    device = choose_device(chosen.device, threads=chosen.threads)
    inputs = RunInputs(recipe)
    with RunFolder(chosen.out).locked():
        model = load(chosen.model, device=device)
        tokenizer_of(model)  # without one nothing can be learned
        found = sweep(
            model,
            inputs.facts,
            replace(chosen.edit, preset="given"),
            chosen.grid,
            covariance_blocks=(spared_blocks(inputs, model, inputs.facts) if chosen.edit.needs_text else None),
            text=fitted.held_out_blocks(inputs, model),
            log=chosen.out / "sweep.jsonl",
            cache_dir=cache_folder(),
        )
        write_text(chosen.out / "sweep.toml", tomli_w.dumps({"edit": to_table(found.chosen)}))
    print(HEADER, *(trial.describe() for trial in found.trials), sep="\n")
    count = len(found.confirmed.records)
    print(f"\nChosen: layers {list(found.chosen.layers)}. On the {count} facts that did not choose:")
    for name in ("success", "paraphrase", "neighbourhood_before", "neighbourhood_after"):
        share = getattr(found.confirmed, name)
        if share is not None:
            print(f"  {name:<22}{share.value:6.1%}  ({share.low:.1%} to {share.high:.1%})")
    print(f"The settings: {chosen.out / 'sweep.toml'}")
    return 0


def run_alone(stage: Stage, chosen: Common, recipe: Recipe, *, default: Recipe = NOTHING_GIVEN) -> int:
    """Run one stage of `recipe` in the folder that was chosen; what nobody gave is as in `default`.

    Raises UserError when the folder holds another stage's work.
    """
    recipe = replace(
        recipe,
        name=stage.name,
        seed=chosen.seed,
        device=chosen.device,
        threads=chosen.threads,
        shard=chosen.shard,
    )
    if isinstance(chosen, Training):
        recipe = replace(recipe, precision=chosen.precision)
    refuse_unread(recipe, default)
    device = choose_device(chosen.device, threads=chosen.threads)
    settings = replace(chosen, threads=torch.get_num_threads())
    folder = RunFolder(chosen.out)
    track = chosen.track if isinstance(chosen, Training) else None
    inputs, start = RunInputs(recipe), recipe.model.source
    remarks = make_alone(stage, inputs, folder, device, start, settings=settings, track=track)
    print(f"The model: {folder.model(stage.name)}", *remarks, sep="\n")
    return 0
