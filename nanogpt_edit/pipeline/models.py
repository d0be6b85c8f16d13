"""The models of a run, one method each: base, SFT, GRPO, edited.

Each is made from the one before, loaded anew from the folder, and left there complete or not at all. One that is there
is left alone; one that was half trained goes on from its saved state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common import distributed
from nanogpt_edit.common.device import autocast
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.problems import Problem, Sample
from nanogpt_edit.doctor import doctor
from nanogpt_edit.doctor.findings import Finding, verdict
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.outcome import describe, shortfall
from nanogpt_edit.editing.patch import EditPatch
from nanogpt_edit.editing.patch_files import carried_patches, save_edited, save_patch
from nanogpt_edit.editing.scores import score_patch
from nanogpt_edit.model.gpt import GPT, GPTConfig
from nanogpt_edit.model.tokenizer import REASONING_TEMPLATE, Tokenizer, tokenizer_of
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import PRETRAINED, RunData
from nanogpt_edit.training.grpo import GRPOConfig, grpo
from nanogpt_edit.training.pretrain import pretrain
from nanogpt_edit.training.sft import sft
from nanogpt_edit.training.trainer import Trainer

WORLD_VOCABULARY, OTHER_VOCABULARY = 400, 2048
TOKENIZER_PROBLEMS, TOKENIZER_FACTS = 1000, 3  # the vocabulary's text: so many problems, and all facts so many times


@dataclass
class RunModels(RunData):
    """One run: its recipe and data, and the folder where every stage leaves its model."""

    folder: RunFolder
    device: torch.device
    warnings: list[str] = field(default_factory=list)
    """What a person should read last."""
    cache_dir: Path | None = None
    """Where covariances are kept; a run of all stages needs each once and keeps none."""

    def keep_counts(self) -> None:
        """Note in the folder how much data there is."""
        problems = {name: len(getattr(self.problems, name)) for name in ("train", "validation", "test")}
        self.folder.keep_environment(self.device, problems=problems, facts=len(self.world.statements))

    def check(self, model: GPT) -> None:
        """What is asked of the model that a run starts from before it trains. A stage alone asks nothing for others."""
        tokenizer_of(model)

    def load(self, stage: str) -> GPT:
        """In float32, whatever the file has: small steps would be lost in bfloat16's eight bits."""
        return checkpoint.load(self.folder.model(stage), device=self.device, dtype=torch.float32)

    def make_base(self) -> None:
        """A new model, pretrained on the base text; or an existing one, taken over."""
        if self.folder.has_model("base"):
            return
        sizes = self.recipe.model
        if sizes.source is not None:
            model = checkpoint.load(sizes.source, device=self.device)
            self.check(model)
            if distributed.is_first():
                checkpoint.save(model, self.folder.model("base"), lineage_note=f"taken from {sizes.source}")
            return
        model = self.new_model()
        tokenizer = tokenizer_of(model)
        self.check(model)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.folder.keep_environment(self.device, parameters=parameters, vocabulary=tokenizer.vocab_size)
        say(f"Base: a new {parameters / 1e6:.2f} M-parameter GPT-2 with {tokenizer.vocab_size} tokens.")
        say(verdict(self.examine_pretrain(model), stage="pretraining"))
        with autocast(self.device, self.recipe.precision):
            trainer = pretrain(
                model,
                self.stream(tokenizer),
                self.held_out_blocks(tokenizer, sizes.block_size),
                self.recipe.pretrain,
                seed=self.recipe.seed,
                state=self.folder.state("base"),
                log=self.folder.log("pretrain"),
                shard=self.recipe.shard,
            )
        self.keep("base", trainer, f"{PRETRAINED} {self.recipe.pretrain.steps} steps")

    def new_model(self) -> GPT:
        """An untrained GPT-2 of the recipe's sizes, with a tokenizer of its own."""
        sizes, tokenizer = self.recipe.model, self.new_tokenizer()
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size,
            block_size=sizes.block_size,
            n_layer=sizes.n_layer,
            n_head=sizes.n_head,
            n_embd=sizes.n_embd,
            activation=sizes.activation,
        )
        model = GPT(config, seed=self.recipe.seed).to(self.device)
        model.tokenizer = tokenizer
        return model

    def new_tokenizer(self) -> Tokenizer:
        """A byte-level BPE of the facts and some of the problems; small, so that names are several tokens long."""
        embedded = self.recipe.problems.path is None
        entries = self.recipe.model.vocab_size or (WORLD_VOCABULARY if embedded else OTHER_VOCABULARY)
        problems = [f"{problem.question} {problem.rationale}" for problem in self.problems.train[:TOKENIZER_PROBLEMS]]
        return Tokenizer.train(
            [*self.world.sentences * TOKENIZER_FACTS, *problems, *self.extra_text], vocab_size=entries
        )

    def make_sft(self) -> None:
        if self.folder.has_model("sft"):
            return
        model = self.load("base")
        pose_questions(model)
        samples = self.training_samples(model)
        say(verdict(self.examine_sft(model, samples), stage="SFT"))
        with autocast(self.device, self.recipe.precision):
            trainer = sft(
                model,
                samples,
                self.samples(self.problems.validation, model, "sft validation"),
                self.recipe.sft,
                replay=self.replay(model),
                seed=self.recipe.seed,
                state=self.folder.state("sft"),
                log=self.folder.log("sft"),
                shard=self.recipe.shard,
            )
        config = self.recipe.sft
        self.keep("sft", trainer, f"SFT for {config.steps} steps", last_too=config.keep == "both")

    def make_grpo(self) -> None:
        if self.folder.has_model("grpo"):
            return
        model = self.load("sft")
        pose_questions(model)
        problems, config = self.grpo_problems(model)
        say(verdict(self.examine_grpo(model, problems, config), stage="GRPO"))
        with autocast(self.device, self.recipe.precision):
            trainer = grpo(
                model,
                problems,
                self.problems.validation,
                config,
                seed=self.recipe.seed,
                state=self.folder.state("grpo"),
                log=self.folder.log("grpo"),
                shard=self.recipe.shard,
            )
        self.keep("grpo", trainer, f"GRPO for {config.steps} steps", last_too=config.keep == "both")

    def grpo_problems(self, model: GPT) -> tuple[list[Problem], GRPOConfig]:
        """The training problems that leave room for a completion, and the settings with that room filled in."""
        room = self.recipe.grpo.max_new_tokens or self.longest_completion(model)
        problems = self.fitting(self.problems.train, model, room=room, what="grpo")
        return problems, replace(self.recipe.grpo, max_new_tokens=room)

    def examine_pretrain(self, model: GPT) -> list[Finding]:
        """What the doctor sees before pretraining."""
        return doctor.check_pretrain(model, self.documents, self.held_out, self.recipe.pretrain)

    def examine_sft(self, model: GPT, samples: Sequence[Sample]) -> list[Finding]:
        """What the doctor sees before SFT; `samples` are those of the training problems."""
        return doctor.check_sft(model, self.problems.train, self.problems.test, samples, self.recipe.sft)

    def examine_grpo(self, model: GPT, problems: Sequence[Problem], config: GRPOConfig) -> list[Finding]:
        """What the doctor sees before GRPO on `problems`."""
        return doctor.check_grpo(model, problems, self.problems.test, config, seed=self.recipe.seed)

    def make_edited(self) -> None:
        """All edits at once into the GRPO model: the patch, its scores, and the edited model."""
        name = Path(self.recipe.facts).stem
        if self.folder.has_model("edited"):
            return
        model = self.load("grpo")
        patch = edit_model(
            model,
            self.facts,
            self.recipe.edit,
            covariance_blocks=None if self.recipe.edit.method == "ft" else self.ordinary_text(model, self.facts),
            cache_dir=self.cache_dir,
        )
        held_out = self.held_out_blocks(tokenizer_of(model), model.config.block_size)
        scores = score_patch(model, patch, text=held_out)
        patch = scores.kept_in(patch.bound_to(model))
        save_patch(patch, self.folder.edits / f"{name}.safetensors")
        scores.save(self.folder.edits, name, patch=patch)
        save_edited(model, self.folder.model("edited"), [*self.carried(), (name, patch.apply(model))])
        say(f"Edit: {describe(scores)}; {patch.seconds:.1f} s.")
        self.warnings += [line for line in (shortfall(scores, patch.config),) if line]

    def carried(self) -> list[tuple[str, EditPatch]]:
        """The patches that the model to be edited carries already, with their names, oldest first."""
        return carried_patches(self.folder.model("grpo"))

    def keep(self, stage: str, trainer: Trainer, note: str, *, last_too: bool = False) -> None:
        """Save what a stage has trained, then let go of its saved states."""
        if last_too:
            trainer.use("last")
            self.save(f"{stage}-last", trainer, f"{note}, the last weights")
            trainer.use("best")
        self.save(stage, trainer, note)
        trainer.clear()

    def save(self, name: str, trainer: Trainer, note: str) -> None:
        with trainer.whole() as model:
            if distributed.is_first():
                checkpoint.save(model, self.folder.model(name), lineage_note=note)


def pose_questions(model: GPT) -> None:
    """Let the chat template and the lineage say how the stage that follows puts a question."""
    tokenizer = tokenizer_of(model)
    if tokenizer.chat_template != REASONING_TEMPLATE:
        done = "set" if tokenizer.chat_template is None else "replaced"
        tokenizer.chat_template = REASONING_TEMPLATE
        model.lineage = (*model.lineage, f"chat template {done}: the bare question, then <think>")
