"""A recipe, from nothing to the report: the stages in order.

Each stage reads its inputs from the run folder and leaves its result there, complete or not at all. So a stage whose
result is there is skipped, a half-done one goes on from its saved state, and a killed run is continued by calling it
again. The models are loaded anew for each stage: what the next stage sees is what a person finds in the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from nanogpt_edit import report
from nanogpt_edit.common import distributed
from nanogpt_edit.common.device import autocast, choose_device
from nanogpt_edit.common.files import write_json
from nanogpt_edit.common.terminal import console, say
from nanogpt_edit.data.problems import prompt_ids
from nanogpt_edit.evaluation import suite
from nanogpt_edit.evaluation.compare import compare_evaluations
from nanogpt_edit.evaluation.records import Comparison, read_recalls, read_records
from nanogpt_edit.evaluation.transcript import transcript
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline.checks import check_data, check_model, check_sizes
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.models import RunModels
from nanogpt_edit.pipeline.recipe import Recipe
from nanogpt_edit.tracing.average import trace_record
from nanogpt_edit.tracing.tracing import TraceConfig, trace_facts

STAGES = ("base", "sft", "grpo", "edited")
EXPECTATION_FAILED = 3


def run(recipe: Recipe, out: Path) -> int:
    """Run `recipe` in the folder `out`, or go on where an earlier call stopped -> exit status (3: expectation failed).

    Raises UserError for bad input, before anything long begins.
    """
    check_sizes(recipe)
    folder = RunFolder(out)
    with folder.locked():
        recipe = folder.with_threads(recipe)
        folder.keep_recipe(recipe)
        pipeline = Pipeline(recipe, folder, choose_device(recipe.device, threads=recipe.threads))
        folder.keep_environment(pipeline.device)
        for stage, work in pipeline.stages().items():
            with folder.timed(stage):
                work()
            distributed.barrier()
        if not distributed.is_first():
            return 0
        with folder.timed("report"):
            summary = report.build(out)
    console.print(report.terminal_summary(summary))
    say(f"The report: {out / 'report.html'}")
    for warning in pipeline.warnings:
        say(warning)
    return EXPECTATION_FAILED if summary.any_failed else 0


class Pipeline(RunModels):
    """One run, from its data to the report."""

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
        check_data(self)
        self.keep_counts()
        facts, problems = len(self.world.statements), len(self.problems.train)
        say(f"World: {facts} facts, {problems} problems, {len(self.facts)} edits to come.")

    def check(self, model: GPT) -> None:
        """Whether every stage to come can do with `model` what the recipe asks."""
        check_model(self, model)

    def evaluate(self, stage: str, previous: str) -> None:
        """Measure one checkpoint, and compare it in pairs with the one before."""
        folder = self.folder.evaluations
        model = None
        if not (folder / f"{stage}.json").exists():
            model = self.load(stage)
            config = self.measuring(model).for_stage(stage)
            skills = self.skills(model, self.problems.test, what=f"evaluate {stage}")
            with autocast(self.device, self.recipe.precision):
                evaluation = suite.evaluate(model, skills, config, stage=stage)
            if distributed.is_first():
                for stale in (*folder.glob(f"compare_{stage}-*.json"), *folder.glob(f"compare_*-{stage}.json")):
                    stale.unlink()
                evaluation.save(folder)
                if stage == "grpo":
                    self.keep_transcript(model, folder)
        if previous and distributed.is_first():
            self.compare(previous, stage)

    def compare(self, before: str, after: str) -> None:
        folder = self.folder.evaluations
        if (folder / f"compare_{after}-{before}.json").exists():
            return
        differences = compare_evaluations(folder / f"{before}.jsonl", folder / f"{after}.jsonl")
        Comparison(after, before, differences).save(folder)

    def keep_transcript(self, model: GPT, folder: Path) -> None:
        """One completion, token by token: the first correct one of the test problems."""
        tokenizer = tokenizer_of(model)
        records = [record for record in read_records(folder / "grpo.jsonl") if record.skill == "problems"]
        record = next((record for record in records if record.correct), records[0])
        told = transcript(
            prompt_ids(record.prompt, tokenizer),
            tokenizer.encode(record.text),
            tokenizer,
            stage="grpo",
            gold=record.gold,
            correct=record.correct,
        )
        write_json(folder / "transcript.json", asdict(told))

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
    if distributed.is_first():
        work()
