"""What the parts of `gpu.py` are told, and how much work each of them does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gpt2 import problems_of
from torch import Tensor
from turns import Options

from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.text import token_blocks
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline.recipe import Recipe, load_recipe

Found = dict[str, object]
BLOCK_TOKENS = 256  # of the text whose keys an edit spares


@dataclass(frozen=True)
class Sizes:
    """How much work a part does."""

    rows: tuple[int, ...] = (1, 8, 64, 512)  # of decoding
    new_tokens: int = 64
    tries: int = 3
    problems: int = 32  # of an SFT step
    steps: int = 6
    rollouts: tuple[int, ...] = (8, 64)  # problems of a GRPO step
    group: int = 8
    completion_tokens: int = 256
    facts: int = 50
    traced: int = 10
    covariance_tokens: int = 100_000
    peak: int = 8192  # rows of the matrices that are multiplied
    copied: int = 2**28  # numbers


FULL = Sizes()
TINY = Sizes(
    rows=(1, 8), new_tokens=8, tries=1, problems=4, steps=2, rollouts=(2, 4), group=4, completion_tokens=8, facts=4,
    traced=1, covariance_tokens=2048, peak=512, copied=2**20,
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What a part is told."""

    size: str
    device: torch.device
    data: Path | None
    checkpoint: Path
    """The model's directory."""
    work: Path
    """Where stages leave their models for the next ones."""
    limit_seconds: float
    """After which a stage of the validation is stopped."""

    @property
    def sizes(self) -> Sizes:
        return TINY if self.size == "tiny" else FULL

    @property
    def precision(self) -> str:
        """Of the stages on this device."""
        return "autocast" if self.device.type == "cuda" else "float32"

    def problems(self) -> list[Problem]:
        return list(problems_of(self.data))

    def options(self, folder: str, **more: object) -> Options:
        """What the sides of a comparison are told; the model is found in a folder that they may write beside."""
        directory = Path(folder) / "model"
        directory.symlink_to(self.checkpoint, target_is_directory=True)
        return {"model": directory, "device": str(self.device), "precision": self.precision, **more}

    def recipe(self) -> Recipe:
        """The earlier system's sizes, as the recipe `gpt2` has them."""
        recipe = load_recipe("gpt2")
        if self.size != "tiny":
            return recipe
        loop = {"steps": 4, "evaluate_every": 2, "warmup_steps": 1}
        return replace(
            recipe,
            sft=replace(recipe.sft, batch_size=4, **loop),
            grpo=replace(
                recipe.grpo, problems_per_step=2, group_size=4, max_new_tokens=8, evaluate_problems=2,
                evaluate_samples=1, **loop,
            ),
            evaluate=replace(recipe.evaluate, problems=4, samples=2, max_new_tokens=8),
        )  # fmt: skip

    def edit_config(self, model: GPT, *, covariance_tokens: int) -> EditConfig:
        """MEMIT's settings for GPT-2, on those of its layers that the model has below its last."""
        config = load_recipe("gpt2").edit
        layers = tuple(layer for layer in config.layers if layer < model.config.n_layer - 1) or (0,)
        return replace(config, layers=layers, covariance_tokens=covariance_tokens, covariance_tolerance=0.0)

    def ordinary_text(self, model: GPT, *, tokens: int) -> Tensor:
        """(N, T) token ids of as much of the problems' text as `tokens` are, all of it where it is shorter."""
        width = min(BLOCK_TOKENS, model.config.block_size - 1)
        texts = [f"{problem.question} {problem.rationale}" for problem in self.problems()]
        return token_blocks(texts, tokenizer_of(model), block_size=width)[: -(-tokens // width), 1:]
