"""A recipe, from nothing to the report: the stages in order.

Each stage reads its inputs from the run folder and leaves its result there, complete or not at all. So a stage whose
result is there is skipped, a half-done one goes on from its saved state, and a killed run is continued by calling it
again. The models are loaded anew for each stage: what the next stage sees is what a person finds in the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from nanogpt_edit import processes, report
from nanogpt_edit.data.problems import (
    Problem,
    Sample,
    prompt_ids,
)
from nanogpt_edit.devices import autocast, choose_device
from nanogpt_edit.edit.contexts import tokenizer_of
from nanogpt_edit.edit.editor import edit_model
from nanogpt_edit.edit.patch_files import save_edited, save_patch
from nanogpt_edit.edit.scores import score_patch
from nanogpt_edit.edit.trace_average import trace_record
from nanogpt_edit.edit.tracing import TraceConfig, trace_facts
from nanogpt_edit.evaluate import suite
from nanogpt_edit.evaluate.compare import compare_evaluations
from nanogpt_edit.evaluate.facts import read_recalls
from nanogpt_edit.evaluate.probes import PROBES
from nanogpt_edit.evaluate.records import read_records
from nanogpt_edit.evaluate.transcript import transcript_record
from nanogpt_edit.files import write_json
from nanogpt_edit.model import checkpoint
from nanogpt_edit.model.gpt import GPT, GPTConfig
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.progress import console, say
from nanogpt_edit.recipe import Recipe
from nanogpt_edit.run_data import PRETRAINED, RunData
from nanogpt_edit.run_folder import RunFolder
from nanogpt_edit.train import doctor
from nanogpt_edit.train.grpo import GRPOConfig, grpo
from nanogpt_edit.train.loop import Trainer
from nanogpt_edit.train.pretrain import pretrain
from nanogpt_edit.train.rewards import find_reward
from nanogpt_edit.train.sft import sft

STAGES = ("base", "sft", "grpo", "edited")
EXPECTATION_FAILED = 3
WORLD_VOCABULARY, OTHER_VOCABULARY = 400, 2048
TOKENIZER_PROBLEMS, TOKENIZER_FACTS = 1000, 3  # the vocabulary's text: so many problems, and all facts so many times


def run(recipe: Recipe, out: Path) -> int:
    """Run `recipe` in the folder `out`, or go on where an earlier call stopped -> exit status (3: expectation failed).

    Raises UserError for bad input, before anything long begins.
    """
    folder = RunFolder(out)
    with folder.locked():
        folder.keep_recipe(recipe)
        pipeline = Pipeline(recipe, folder, choose_device(recipe.device, threads=recipe.threads))
        folder.keep_environment(pipeline.device)
        for stage, work in pipeline.stages().items():
            with folder.timed(stage):
                work()
            processes.wait_for_all()
        if not processes.is_first():
            return 0
        with folder.timed("report"):
            summary = report.build(out)
    console.print(report.terminal_summary(summary))
    say(f"The report: {out / 'report.html'}")
    return EXPECTATION_FAILED if summary.any_failed else 0


@dataclass
class Pipeline(RunData):
    """One run: its recipe and data, and the folder where every stage leaves its result."""

    folder: RunFolder
    device: torch.device
    cache_dir: Path | None = None
    """Where covariances are kept; a run of all stages needs each once and keeps none."""

    def stages(self) -> dict[str, Callable[[], None]]:
        """What is to be done, in order, under the names it is timed by."""
        work: dict[str, Callable[[], None]] = {"world": self.prepare}
        makers: dict[str, Callable[[], None]] = {"base": self.make_base, "sft": self.make_sft, "grpo": self.make_grpo}
        makers["edited"] = partial(by_the_first, self.make_edited)
        previous = ""
        for stage, maker in makers.items():
            work[stage] = maker
            work[f"evaluate_{stage}"] = partial(self.evaluate, stage, previous)
            previous = stage
        work["trace"] = partial(by_the_first, self.trace)
        return work

    def prepare(self) -> None:
        """Read and check all data before anything long begins."""
        self.check_problems()
        _ = self.extra_text  # first read by the edit of a model that was not pretrained here: hours later
        facts, problems = len(self.world.statements), len(self.problems.train)
        say(f"World: {facts} facts, {problems} problems, {len(self.facts)} edits to come.")

    def check_problems(self) -> None:
        """Read the problems, say what was cut or left out, and look for the rewards."""
        for note in self.problems.notes:
            say(note)
        for reward in self.recipe.grpo.rewards:
            find_reward(reward)
        splits = {name: len(getattr(self.problems, name)) for name in ("train", "validation", "test")}
        self.folder.keep_environment(self.device, problems=splits, facts=len(self.world.statements))

    # --- models -------------------------------------------------------------------------------------------------

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
            tokenizer_of(model)
            if processes.is_first():
                checkpoint.save(model, self.folder.model("base"), lineage_note=f"taken from {sizes.source}")
            return
        model = self.new_model()
        tokenizer = model.tokenizer
        assert tokenizer is not None
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.folder.keep_environment(self.device, parameters=parameters, vocabulary=tokenizer.vocab_size)
        say(f"Base: a new {parameters / 1e6:.2f} M-parameter GPT-2 with {tokenizer.vocab_size} tokens.")
        say(doctor.verdict(self.examine_pretrain(model), stage="pretraining"))
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
        assert model.tokenizer is not None
        samples = self.training_samples(model)
        say(doctor.verdict(self.examine_sft(model, samples), stage="SFT"))
        with autocast(self.device, self.recipe.precision):
            trainer = sft(
                model,
                samples,
                self.samples(self.problems.validation, model, "sft validation"),
                self.recipe.sft,
                replay=self.replay(model),
                seed=self.recipe.seed,
                pad_id=model.tokenizer.pad_id,
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
        problems, config = self.grpo_problems(model)
        say(doctor.verdict(self.examine_grpo(model, problems, config), stage="GRPO"))
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

    def examine_pretrain(self, model: GPT) -> list[doctor.Finding]:
        """What the doctor sees before pretraining."""
        return doctor.check_pretrain(model, self.documents, self.held_out, self.recipe.pretrain)

    def examine_sft(self, model: GPT, samples: Sequence[Sample]) -> list[doctor.Finding]:
        """What the doctor sees before SFT; `samples` are those of the training problems."""
        return doctor.check_sft(model, self.problems.train, self.problems.test, samples, self.recipe.sft)

    def examine_grpo(self, model: GPT, problems: Sequence[Problem], config: GRPOConfig) -> list[doctor.Finding]:
        """What the doctor sees before GRPO on `problems`."""
        return doctor.check_grpo(model, problems, self.problems.test, config, seed=self.recipe.seed)

    def make_edited(self) -> None:
        """All edits at once into the GRPO model: the patch, its scores, and the edited model."""
        name = Path(self.recipe.facts).stem
        if self.folder.has_model("edited"):
            return
        model = self.load("grpo")
        assert model.tokenizer is not None
        patch = edit_model(
            model,
            self.facts,
            self.recipe.edit,
            covariance_blocks=self.ordinary_text(model),
            cache_dir=self.cache_dir,
        )
        held_out = self.held_out_blocks(model.tokenizer, model.config.block_size)
        scores = score_patch(model, patch, text=held_out)
        patch = scores.kept_in(patch.bound_to(model))
        save_patch(patch, self.folder.edits / f"{name}.safetensors")
        scores.save(self.folder.edits, name, patch=patch)
        say(f"Edit: {scores.success.value:.0%} of {len(self.facts)} facts at rank 1, in {patch.seconds:.1f} s.")
        save_edited(model, self.folder.model("edited"), {name: patch.apply(model)})

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
            if processes.is_first():
                checkpoint.save(model, self.folder.model(name), lineage_note=note)

    # --- measurements -------------------------------------------------------------------------------------------

    def evaluate(self, stage: str, previous: str) -> None:
        """Measure one checkpoint, and compare it in pairs with the one before."""
        folder = self.folder.evaluations
        model = None
        if not (folder / f"{stage}.json").exists():
            model = self.load(stage)
            assert model.tokenizer is not None
            config = self.recipe.evaluate
            if config.max_new_tokens is None:
                config = replace(config, max_new_tokens=self.longest_completion(model))
            if stage == "edited":
                config = replace(config, samples=config.edited_samples)
            skills = suite.Skills(
                problems=self.fitting(self.problems.test, model, room=1, what=f"evaluate {stage}"),
                arithmetic=self.world.arithmetic,
                questions=self.questions(),
                probes=PROBES,
                text=self.held_out_blocks(model.tokenizer, model.config.block_size),
            )
            with autocast(self.device, self.recipe.precision):
                evaluation = suite.evaluate(model, skills, config, stage=stage)
            if processes.is_first():
                evaluation.save(folder)
                if stage == "grpo":
                    self.keep_transcript(model, folder)
        if previous and processes.is_first():
            self.compare(previous, stage)

    def compare(self, before: str, after: str) -> None:
        folder = self.folder.evaluations
        path = folder / f"compare_{after}-{before}.json"
        if path.exists():
            return
        differences = compare_evaluations(folder / f"{before}.jsonl", folder / f"{after}.jsonl")
        write_json(path, {"metrics": {name: asdict(difference) for name, difference in differences.items()}})

    def keep_transcript(self, model: GPT, folder: Path) -> None:
        """One completion, token by token: the first correct one of the test problems."""
        assert model.tokenizer is not None
        records = [record for record in read_records(folder / "grpo.jsonl") if record.skill == "problems"]
        record = next((record for record in records if record.correct), records[0])
        write_json(
            folder / "transcript.json",
            transcript_record(
                prompt_ids(record.prompt, model.tokenizer),
                model.tokenizer.encode(record.text),
                model.tokenizer,
                stage="grpo",
                gold=record.gold,
                correct=record.correct,
            ),
        )

    def trace(self) -> None:
        """Where the base model recalls its facts: causal tracing, averaged over those it knows."""
        path = self.folder.edits / "trace.json"
        if path.exists():
            return
        model = self.load("base")
        recalls = read_recalls(self.folder.evaluations / "base_facts.jsonl")
        known = {each.prompt for each in recalls if each.recalled}
        facts = [fact for fact in self.facts if fact.prompt in known] or list(self.facts)
        config = TraceConfig()
        write_json(path, trace_record(trace_facts(model, facts[: config.facts], config), stage="base"))


def by_the_first(work: Callable[[], None]) -> None:
    """`work` that one process does alone, while the others wait at the stage's end."""
    if processes.is_first():
        work()
