"""The verbs `pretrain`, `sft`, `grpo` and `edit`: one stage of a run alone, from any model.

Each is the stage of `pipeline.py`, in a folder laid out like a run's: the model, its log, the settings. A stage that
was interrupted goes on, and one that is done is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import tomli_w
import torch
from torch import Tensor

from nanogpt_edit.checkpoint.checkpoint import load
from nanogpt_edit.commands.arguments import GRPO, SFT, Common, Edit, Pretrain
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.common import distributed
from nanogpt_edit.common.device import choose_device
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import write_text
from nanogpt_edit.common.settings import differences, read_settings, to_table, write_settings
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.covariance_cache import default_cache_dir
from nanogpt_edit.editing.patch import EditPatch
from nanogpt_edit.editing.patch_files import carried_patches
from nanogpt_edit.editing.sweep import HEADER, sweep
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline.checks import check_problems, check_sizes
from nanogpt_edit.pipeline.folder import MAY_CHANGE, RunFolder
from nanogpt_edit.pipeline.inputs import for_model, recipe_for_edit, require_world
from nanogpt_edit.pipeline.models import RunModels
from nanogpt_edit.pipeline.recipe import Recipe, refuse_unread
from nanogpt_edit.training.pretrain_config import BaseText, PretrainConfig

NOTHING_GIVEN = Recipe()


@dataclass
class Stage(RunModels):
    """One stage that starts from the model a person names, not from the stage before it."""

    source: str = ""

    def prepare(self, stage: str) -> None:
        """Read what the stage needs before its model is loaded."""
        check_problems(self)
        self.keep_counts()
        if stage == "sft":
            _ = self.replay_source
        if stage == "edited":
            _ = self.extra_text, self.facts

    def load(self, stage: str) -> GPT:
        """To be trained in float32; to be edited in the file's dtype, which the patch is made for."""
        model = load(self.source, device=self.device, dtype=None if stage == "grpo" else torch.float32)
        tokenizer_of(model)  # a model without one can learn nothing here
        self.recipe = for_model(self.recipe, model, self.source)
        return model

    def carried(self) -> list[tuple[str, EditPatch]]:
        return carried_patches(self.source)

    def ordinary_text(self, model: GPT, facts: Sequence[Fact]) -> Tensor:
        """Raises UserError where it would be the embedded world alone, and the model was not pretrained on that."""
        if self.recipe.problems.path is None and not self.extra_text:
            require_world(model, remedy="Give --pretrain.text")
        return super().ordinary_text(model, facts)


def pretrain(arguments: list[str]) -> int:
    """The verb `pretrain`."""
    chosen = parse(Pretrain, arguments, verb="pretrain")
    recipe = Recipe(model=chosen.model, world=chosen.world, problems=chosen.problems, pretrain=chosen.pretrain)
    return run_alone("base", chosen, recipe)


def sft(arguments: list[str]) -> int:
    """The verb `sft`."""
    chosen = parse(SFT, arguments, verb="sft")
    recipe = Recipe(
        world=chosen.world, problems=chosen.problems, pretrain=PretrainConfig(**asdict(chosen.pretrain)), sft=chosen.sft
    )
    return run_alone("sft", chosen, recipe, source=chosen.model)


def grpo(arguments: list[str]) -> int:
    """The verb `grpo`."""
    chosen = parse(GRPO, arguments, verb="grpo")
    recipe = Recipe(world=chosen.world, problems=chosen.problems, grpo=chosen.grpo)
    return run_alone("grpo", chosen, recipe, source=chosen.model)


def edit(arguments: list[str]) -> int:
    """The verb `edit`."""
    default = as_in_its_recipe(parse(Edit, arguments, verb="edit"))
    chosen = parse(Edit, arguments, verb="edit", default=default)
    recipe = Recipe(
        world=chosen.world,
        problems=chosen.problems,
        pretrain=PretrainConfig(**asdict(chosen.pretrain)),
        edit=chosen.edit,
        facts=chosen.facts,
    )
    taken = Recipe(world=default.world)
    if chosen.sweep:
        refuse_unread(recipe, taken)
        return choose_settings(chosen, recipe)
    return run_alone("edited", chosen, recipe, source=chosen.model, default=taken)


def as_in_its_recipe(chosen: Edit) -> Edit:
    """The same arguments over the settings of `recipe_for_edit`."""
    recipe = recipe_for_edit(chosen.model, chosen.recipe)
    base_text = {each.name: getattr(recipe.pretrain, each.name) for each in fields(BaseText)}
    return replace(
        chosen,
        seed=recipe.seed,
        world=recipe.world.seeded(recipe.seed),
        problems=recipe.problems,
        pretrain=BaseText(**base_text),
        edit=recipe.edit,
    )


def choose_settings(chosen: Edit, recipe: Recipe) -> int:
    """Sweep, print the table and what the settings are worth on the other half of the facts, write them."""
    check_sizes(recipe)
    device = choose_device(chosen.device, threads=chosen.threads)
    folder = RunFolder(chosen.out)
    with folder.locked():
        one = Stage(recipe=replace(recipe, seed=chosen.seed), folder=folder, device=device, source=chosen.model)
        model = one.load("grpo")
        found = sweep(
            model,
            one.facts,
            chosen.edit,
            chosen.grid,
            covariance_blocks=None if chosen.edit.method == "ft" else one.ordinary_text(model, one.facts),
            text=one.held_out_blocks(tokenizer_of(model), model.config.block_size),
            log=chosen.out / "sweep.jsonl",
            cache_dir=default_cache_dir(),
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


def run_alone(stage: str, chosen: Common, recipe: Recipe, *, source: str = "", default: Recipe = NOTHING_GIVEN) -> int:
    """Run one stage of `recipe` in the folder that was chosen; what nobody gave is as in `default`.

    Raises UserError when the folder holds another stage's work.
    """
    recipe = replace(
        recipe,
        name=stage,
        seed=chosen.seed,
        device=chosen.device,
        precision=chosen.precision,
        threads=chosen.threads,
        shard=chosen.shard,
    )
    refuse_unread(recipe, default)
    check_sizes(recipe)
    device = choose_device(chosen.device, threads=chosen.threads)
    folder = RunFolder(chosen.out)
    with folder.locked():
        keep_settings(chosen, chosen.out / f"{stage}.toml", begun=folder.begun(stage))
        if folder.has_model(stage):
            say(f"{stage}: done before; to do it again, choose another --out, or delete {folder.model(stage)}.")
        one = Stage(recipe=recipe, folder=folder, device=device, cache_dir=default_cache_dir(), source=source)
        one.prepare(stage)
        {"base": one.make_base, "sft": one.make_sft, "grpo": one.make_grpo, "edited": one.make_edited}[stage]()
    print(f"The model: {folder.model(stage)}", *one.warnings, sep="\n")
    return 0


def keep_settings(chosen: Common, path: Path, *, begun: bool) -> None:
    """Write what was chosen; once the stage has begun, check that the file there holds the same.

    Raises UserError naming what differs.
    """
    if not distributed.is_first():
        return
    if path.exists() and begun:
        changed = [name for name in differences(read_settings(type(chosen), path), chosen) if name not in MAY_CHANGE]
        if changed:
            raise UserError(
                f"{path.parent} holds this stage with other settings ({', '.join(changed)}); choose another --out, or "
                f"delete the folder."
            )
    write_settings(chosen, path)
