"""A recipe is the settings of all stages in one TOML file: what a user copies, edits, and finds again in the run.

`load_recipe("tiny")` reads a packaged one, `load_recipe("my.toml")` your own. What a file leaves out keeps the default
of its stage. `save_recipe` writes every field resolved, so that a run's recipe.toml gives the same numbers again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanogpt_edit.common.errors import UserError, at_least, did_you_mean
from nanogpt_edit.common.files import check_file
from nanogpt_edit.common.records import Settings, check_fields
from nanogpt_edit.common.settings import Precision, differences, read_settings, to_table, write_settings
from nanogpt_edit.data.splits import ProblemsConfig
from nanogpt_edit.data.world.world import WorldConfig
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.pipeline.records import READ_BY, STAGE_NAMES, StageName
from nanogpt_edit.tracing.config import TraceConfig
from nanogpt_edit.training.config import Default
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.pretrain_config import PretrainConfig
from nanogpt_edit.training.sft_config import SFTConfig

SHA256 = re.compile("[0-9a-f]{64}")
PACKAGED = Path(__file__).parents[1] / "recipes"
SFT_ALONE = SFTConfig(replay=0.0, learning_rate=Default(1e-4))
GRPO_ALONE = GRPOConfig(learning_rate=Default(5e-6))
"""Of a stage by itself, on a model from anywhere: smaller steps than a recipe's new model takes, nothing to replay."""


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Which model to start from: an existing one, or the sizes of a new one."""

    source: str | None = None
    """A model directory, a hub name (gpt2), a .gguf file, a model in a wheel (pip:NAME==VERSION, and #FILE for one of
    several), or a nanoGPT ckpt.pt. None: a new GPT-2 of the sizes below, pretrained."""
    sha256: str | None = None
    """The SHA-256 that the source's wheel or .gguf file must have (None: it is not checked)."""
    vocab_size: int | None = None
    """Entries of the byte-level BPE trained for a new model, the five special tokens included (None: 400 for the
    embedded world, where names must be several tokens long, 2048 for other problems)."""
    block_size: int = 256
    """Longest sequence of a new model, in tokens."""
    n_layer: int = 4
    """Blocks of a new model."""
    n_head: int = 4
    """Attention heads per block of a new model; divides n_embd."""
    n_embd: int = 128
    """Width of a new model."""
    activation: Literal["gelu_tanh", "gelu", "relu"] = "gelu_tanh"
    """The MLP's nonlinearity in a new model; relu is several times cheaper on a CPU."""

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(1, self, "vocab_size", "block_size", "n_layer", "n_head", "n_embd")
        if self.sha256 is not None and not SHA256.fullmatch(self.sha256):
            raise UserError(f"is {self.sha256}; a SHA-256 has 64 hexadecimal digits, in small letters.", field="sha256")
        if self.sha256 is not None and self.source is None:
            raise UserError("is given, but no source that could have it; leave it out.", field="sha256")


@dataclass(frozen=True)
class Recipe(Settings):
    """Settings of every stage, in the order in which the stages run."""

    name: str = "mine"
    """What the run is called."""
    stages: tuple[StageName, ...] = STAGE_NAMES
    """What is made, each from the one before and measured. base comes first; any of the others may be left out, and the
    edit may come before SFT or GRPO: what is left of it then stands in the report."""
    seed: int = 0
    """Chooses everything random; the same seed gives the same numbers."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, …"""
    precision: Precision = "auto"
    """Of matrix products in training and evaluation: bfloat16, float32, or auto (bfloat16 on a GPU that has it).
    Weights are float32 in training; an edit has `edit.precision`."""
    threads: int | None = None
    """CPU threads; another number gives slightly different weights (None: torch's own choice, which recipe.toml then
    records)."""
    shard: bool = False
    """Under torchrun, divide the weights over the processes (FSDP2) where one process cannot hold them; else each has
    all of them (DistributedDataParallel)."""
    facts: str = "facts50"
    """The facts to edit: a .jsonl or .json file, or facts50, which comes with the package."""
    model: ModelConfig = ModelConfig()
    world: WorldConfig = WorldConfig()
    problems: ProblemsConfig = ProblemsConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft: SFTConfig = SFTConfig()
    grpo: GRPOConfig = GRPOConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    edit: EditConfig = EditConfig()
    trace: TraceConfig = TraceConfig()
    expect: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)
    """What the run should reach: a path into summary.json and a bound ("edit.success" = ">= 0.90")."""

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(0, self, "seed")
        _check_stages(self.stages)


def _check_stages(stages: Sequence[str]) -> None:
    """Raise UserError unless these are stages of a run in their order, each once, with what they are made from."""
    if not stages or stages[0] != "base":
        found = f"begins with {stages[0]}" if stages else "is empty"
        raise UserError(f"{found}; it begins with base, the model that the others are made from.", field="stages")
    trained = [name for name in stages if name != "edited"]
    if trained != [name for name in STAGE_NAMES if name in trained] or stages.count("edited") > 1:
        raise UserError(
            f"is {', '.join(stages)}; each stands there once at most, in the order {', '.join(STAGE_NAMES)}, and only "
            "edited may come earlier.",
            field="stages",
        )


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.stem for file in PACKAGED.glob("*.toml"))


def recipe_beside(model: str | Path | None) -> Path | None:
    """The recipe.toml of the run that a model directory stands in; None where it stands in none."""
    if model is None or not Path(model).expanduser().is_dir():
        return None
    path = Path(model).expanduser()
    path = (path if path.name not in ("", "..") else path.resolve()).parent / "recipe.toml"
    return path if path.is_file() else None


def load_recipe(name_or_path: str | Path, *, over: Recipe | None = None) -> Recipe:
    """A packaged recipe by its name, or any recipe file by its path. What it leaves out is as in `over`: a whole table,
    or else the field's default.

    Raises UserError for a name that is none (with the nearest), and for whatever `read_settings` refuses.
    """
    path = Path(name_or_path)
    if str(name_or_path) in packaged_recipes():
        path = PACKAGED / f"{name_or_path}.toml"
    elif path.is_dir():
        kept = " Name the recipe.toml in it." if (path / "recipe.toml").is_file() else ""
        check_file(path, f"A recipe is a .toml file, or one that is packaged: {', '.join(packaged_recipes())}.{kept}")
    elif path.suffix != ".toml" and not path.is_file():
        names = packaged_recipes()
        raise UserError(
            f'there is no recipe "{name_or_path}"{did_you_mean(str(name_or_path), names)} '
            f"Packaged: {', '.join(names)}; a path to a .toml file works too."
        )
    return read_settings(Recipe, path, defaults={**({} if over is None else to_table(over)), "name": path.stem})


def refuse_unread(given: Recipe, default: Recipe) -> None:
    """Raise UserError for a field that was given and that nothing would read: `given` is `default` with what a person
    has overridden."""
    problems, source = given.problems.path, given.model.source
    changed = [name for name in differences(given, default) if name not in ("model.source", "model.sha256")]
    stages = f"the stages are {', '.join(given.stages)} (stages)"
    for part, why in (
        ("world", f"the problems are those of {problems} (problems.path)" if problems is not None else None),
        ("model", f"the model is {source} (model.source), which has sizes of its own" if source is not None else None),
        *((part, None if stage in given.stages else stages) for part, stage in READ_BY.items()),
    ):
        unread = [name for name in changed if name.partition(".")[0] == part]
        if why is not None and unread:
            raise UserError(f"{unread[0]} is given, but {why}, so nothing would read it; leave one of them out.")


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write every field of `recipe`; `load_recipe(path)` gives back an equal one."""
    write_settings(recipe, path)
