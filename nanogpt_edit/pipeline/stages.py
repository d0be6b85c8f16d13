"""The stages of a run: base, SFT, GRPO, edited. Each is a function that leaves its model in the folder, whole or not
at all, and a record that says how a run uses it.

A stage is made from the model before it (`start`), loaded anew: what it sees is what a person finds in the folder. One
that was half trained goes on from its saved state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common import distributed
from nanogpt_edit.common.device import autocast, multiplies_bfloat16
from nanogpt_edit.common.errors import about
from nanogpt_edit.common.files import check_file
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE
from nanogpt_edit.common.terminal import say
from nanogpt_edit.common.words import count
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.rows import read_text_file
from nanogpt_edit.data.samples import Sample
from nanogpt_edit.doctor import doctor
from nanogpt_edit.doctor.findings import Finding, verdict
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch_files import carried_patches, save_edited, save_patch
from nanogpt_edit.editing.scores import describe, edit_record, kept_in, score_patch, shortfall
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.model.chat_template import PLAIN_TEMPLATE
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import EMBEDDED, LineageEntry
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline import fitted
from nanogpt_edit.pipeline.adapters import keep_adapter, keep_base
from nanogpt_edit.pipeline.checks import check_model, check_trained
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import Part, RunInputs
from nanogpt_edit.pipeline.measure import keep_transcript
from nanogpt_edit.pipeline.new_model import new_model
from nanogpt_edit.pipeline.recipe import Recipe
from nanogpt_edit.pipeline.records import StageName
from nanogpt_edit.pipeline.spared import spared_blocks
from nanogpt_edit.training.config import TuningConfig
from nanogpt_edit.training.grpo import grpo
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.pretrain import pretrain
from nanogpt_edit.training.sft import fit_base, sft
from nanogpt_edit.training.sft_config import SFTConfig
from nanogpt_edit.training.trainer import Trainer

Start = str | Path | GPT | None
"""The model that a stage is made from: where it lies, or itself; None where there is none yet."""
Remarks = tuple[str, ...]
"""What a person should read last."""
LARGE_MODEL = 20_000_000  # parameters; of a smaller one products are the lesser part


@dataclass(frozen=True)
class Stage:
    """A stage: the name of its folder, how it is made, what it reads, and how its model is measured."""

    name: StageName
    make: Callable[[RunInputs, RunFolder, torch.device, Start], Remarks]
    reads: tuple[Part, ...] = ("problems",)
    by_first: bool = False
    """Is it the work of one process alone?"""
    samples: Callable[[EvaluateConfig], int] = lambda config: config.samples
    """Completions of each test problem."""
    after: Callable[[GPT, RunFolder], None] | None = None
    """What is kept of the model beside its measures."""


def make_model(stage: Stage, inputs: RunInputs, folder: RunFolder, device: torch.device, start: Start) -> Remarks:
    """The stage's model in the folder: left alone where it is there, gone on with where it is half done."""
    if folder.has_model(stage.name) or (stage.by_first and not distributed.is_first()):
        return ()
    return stage.make(inputs, folder, device, start)


def make_base(
    inputs: RunInputs,
    folder: RunFolder,
    device: torch.device,
    start: Start,
    *,
    check: Callable[[RunInputs, GPT], None] | None = None,
) -> Remarks:
    """An existing model, taken over; or a new one, pretrained on the base text. `check` is asked before it trains."""
    assert not isinstance(start, GPT)
    pinned = inputs.recipe.model.sha256
    model = new_model(inputs, device) if start is None else checkpoint.load(start, device=device, sha256=pinned)
    tokenizer = tokenizer_of(model)
    if check is not None:
        check(inputs, model)
    recipe, parameters = inputs.recipe, sum(parameter.numel() for parameter in model.parameters())
    folder.keep_environment(device, parameters=parameters, vocabulary=tokenizer.vocab_size)
    if start is not None:
        if distributed.is_first():
            checkpoint.save(model, folder.model("base"), lineage_note=LineageEntry("taken", f"taken from {start}"))
        return ()
    say(f"Base: a new {parameters / 1e6:.2f} M-parameter GPT-2 with {tokenizer.vocab_size} tokens.")
    say(verdict(examine_pretrain(inputs, model), stage="pretraining"))
    with autocast(device, recipe.precision):
        trainer = pretrain(
            model,
            fitted.base_text(inputs, model),
            fitted.held_out_blocks(inputs, model),
            recipe.pretrain,
            seed=recipe.seed,
            state=folder.state("base"),
            log=folder.log("pretrain"),
            shard=recipe.shard,
        )
    said = f"pretrained for {count(recipe.pretrain.steps, 'step')}"
    _keep(folder, "base", trainer, LineageEntry("pretrained", said, text=EMBEDDED, problems=inputs.whose_problems))
    return ()


def make_sft(inputs: RunInputs, folder: RunFolder, device: torch.device, start: Start) -> Remarks:
    """The model that has learned from worked solutions how a problem is put and answered."""
    recipe, model = inputs.recipe, _to_train(start, device)
    check_trained(model, "sft", recipe.sft)
    set_template(model, recipe.sft)
    samples = fitted.training_samples(inputs, model)
    say(verdict(examine_sft(inputs, model, samples), stage="SFT"))
    say_what_is_faster(model, recipe)
    config = recipe.sft if recipe.sft.chats is None else replace(recipe.sft, fit_problems=0)
    with autocast(device, recipe.precision):
        base = None
        if config.lora.keep_adapter:
            fit_base(model, samples, config)
            base = keep_base(model, start, folder, "sft")
        trainer = sft(
            model,
            samples,
            fitted.validation_samples(inputs, model),
            config,
            replay=fitted.replay(inputs, model),
            seed=recipe.seed,
            state=folder.state("sft"),
            log=folder.log("sft"),
            shard=recipe.shard,
        )
    said = f"SFT{manner_of(recipe.sft)} for {count(recipe.sft.steps, 'step')}"
    done = LineageEntry("sft", said, problems=inputs.whose_problems)
    if recipe.sft.chats is not None:
        done = LineageEntry("sft", f"{said} on the conversations of {recipe.sft.chats}")
    _keep(folder, "sft", trainer, done, last_too=config.keep == "both", base=base)
    return ()


def make_grpo(inputs: RunInputs, folder: RunFolder, device: torch.device, start: Start) -> Remarks:
    """The model that has tried problems, and was rewarded."""
    recipe, model = inputs.recipe, _to_train(start, device)
    check_trained(model, "grpo", recipe.grpo)
    set_template(model)
    problems, config = fitted.grpo_problems(inputs, model)
    say(verdict(examine_grpo(inputs, model, problems, config), stage="GRPO"))
    say_what_is_faster(model, recipe)
    base = keep_base(model, start, folder, "grpo") if config.lora.keep_adapter else None
    with autocast(device, recipe.precision):
        trainer = grpo(
            model,
            problems,
            inputs.problems.validation,
            config,
            seed=recipe.seed,
            state=folder.state("grpo"),
            log=folder.log("grpo"),
            shard=recipe.shard,
        )
    done = LineageEntry(
        "grpo", f"GRPO{manner_of(config)} for {count(config.steps, 'step')}", problems=inputs.whose_problems
    )
    _keep(folder, "grpo", trainer, done, last_too=config.keep == "both", base=base)
    return ()


def make_edited(
    inputs: RunInputs,
    folder: RunFolder,
    device: torch.device,
    start: Start,
    *,
    cache_dir: Path | None = None,
) -> Remarks:
    """All edits at once: the patch, its scores, and the edited model, in the dtype of the one that it is made from.

    Covariances are kept in `cache_dir`, if any.
    """
    assert isinstance(start, str | Path)
    recipe, facts, name = inputs.recipe, inputs.facts, Path(inputs.recipe.facts).stem
    model = checkpoint.load(start, device=device)
    tokenizer_of(model)  # without one nothing can be learned
    blocks = spared_blocks(inputs, model, facts) if recipe.edit.needs_text else None
    patch = edit_model(model, facts, recipe.edit, covariance_blocks=blocks, cache_dir=cache_dir)
    scores = score_patch(model, patch, text=fitted.measured_blocks(inputs, model), asked=recipe.evaluate.every_form)
    patch = kept_in(patch, scores)
    save_patch(patch, folder.edits / f"{name}.safetensors")
    edit_record(name, patch, scores).save(folder.edits)
    save_edited(model, folder.model("edited"), [*carried_patches(start), (name, patch.apply(model))])
    say(f"Edit: {describe(scores)}; {patch.seconds:.1f} s.")
    return tuple(line for line in (shortfall(scores, patch.config),) if line)


BASE = Stage("base", partial(make_base, check=check_model), reads=("problems", "extra_text"))
SFT = Stage("sft", make_sft, reads=("problems", "chats", "extra_text", "replay_source"))
GRPO = Stage("grpo", make_grpo, after=keep_transcript)
EDITED = Stage(
    "edited",
    make_edited,
    reads=("extra_text", "facts"),
    by_first=True,
    samples=lambda config: config.edited_samples,
)
STAGES = (BASE, SFT, GRPO, EDITED)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages that a run of the recipe makes, in their order."""
    return tuple(sorted((s for s in STAGES if s.name in recipe.stages), key=lambda s: recipe.stages.index(s.name)))


def data_of(recipe: Recipe) -> tuple[Part, ...]:
    """What they read together."""
    return tuple(dict.fromkeys(part for stage in stages_of(recipe) for part in stage.reads))


def examine_pretrain(inputs: RunInputs, model: GPT) -> list[Finding]:
    """What the doctor sees before pretraining."""
    return doctor.check_pretrain(model, inputs.documents(model), inputs.held_out, inputs.recipe.pretrain)


def examine_sft(inputs: RunInputs, model: GPT, samples: Sequence[Sample]) -> list[Finding]:
    """What the doctor sees before SFT; `samples` are those that are trained on."""
    if inputs.chats is not None:
        return doctor.check_chats(model, inputs.chats[0], samples, inputs.recipe.sft)
    return doctor.check_sft(model, inputs.problems.train, inputs.problems.test, samples, inputs.recipe.sft)


def examine_grpo(inputs: RunInputs, model: GPT, problems: Sequence[Problem], config: GRPOConfig) -> list[Finding]:
    """What the doctor sees before GRPO on `problems`."""
    return doctor.check_grpo(model, problems, inputs.problems.test, config, seed=inputs.recipe.seed)


def say_what_is_faster(model: GPT, recipe: Recipe) -> None:
    """Of a CPU that multiplies bfloat16 in a unit of its own: that nobody has asked for it, where it would pay."""
    large = sum(parameter.numel() for parameter in model.parameters()) >= LARGE_MODEL
    if large and recipe.precision == "auto" and multiplies_bfloat16(model.device):
        say(
            "This CPU multiplies bfloat16 in a unit of its own (AMX): with --precision bfloat16 a step takes about "
            "two thirds of the time (docs/performance.md)."
        )


def set_template(model: GPT, config: SFTConfig | None = None) -> None:
    """How questions are put from here on: the bare one, then <think>; in SFT on conversations as its settings say, or
    the model's own template, or plainly. The lineage names what was set.
    """
    tokenizer = tokenizer_of(model)
    wanted, what = REASONING_TEMPLATE, "the bare question, then <think>"
    if config is not None and config.chats is not None:
        wanted = chat_template(config) or tokenizer.chat_template or PLAIN_TEMPLATE
        what = "a name, a colon and the text" if wanted == PLAIN_TEMPLATE else f"that of {config.chat_template}"
    if tokenizer.chat_template != wanted:
        done = "set" if tokenizer.chat_template is None else "replaced"
        tokenizer.chat_template = wanted
        model.lineage = (*model.lineage, LineageEntry("template", f"chat template {done}: {what}"))


def chat_template(config: SFTConfig) -> str | None:
    """The template that the settings name. Raises UserError where its file cannot be read."""
    if config.chat_template in (None, "plain"):
        return PLAIN_TEMPLATE if config.chat_template else None
    with about("sft.chat_template"):
        file = Path(config.chat_template)
        check_file(file, 'Give a file in Jinja, or "plain".')
        return read_text_file(file)


def manner_of(config: TuningConfig) -> str:
    """For the lineage: that adapters learned, and their rank; or what did not learn."""
    if config.lora.rank:
        return f" (LoRA of rank {config.lora.rank})"
    return f" ({', '.join(config.frozen)} kept as it was)" if config.frozen else ""


def _to_train(start: Start, device: torch.device) -> GPT:
    """In float32, whatever it has been in: small steps would be lost in bfloat16's eight bits."""
    if isinstance(start, GPT):
        return start.to(device, torch.float32)
    assert start is not None
    return checkpoint.load(start, device=device, dtype=torch.float32)


def _keep(
    folder: RunFolder,
    stage: StageName,
    trainer: Trainer,
    done: LineageEntry,
    *,
    last_too: bool = False,
    base: Path | None = None,
) -> None:
    """Save what a stage has trained, with an adapter of `base` where one is to be kept; then let go of its states."""
    if last_too:
        trainer.use("last")
        _save(trainer, folder.model(f"{stage}-last"), replace(done, sentence=f"{done}, the last weights"))
        trainer.use("best")
    if base is not None:
        keep_adapter(trainer, base, folder, stage, done)
    _save(trainer, folder.model(stage), done)
    trainer.clear()


def _save(trainer: Trainer, directory: Path, done: LineageEntry) -> None:
    with trainer.parallel.gathered() as model:
        if distributed.is_first():
            checkpoint.save(model, directory, lineage_note=done)
