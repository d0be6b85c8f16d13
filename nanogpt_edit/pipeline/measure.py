"""What a run measures: every checkpoint, what changed from one to the next, and where the base model recalls facts."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from nanogpt_edit.common import distributed
from nanogpt_edit.common.device import autocast
from nanogpt_edit.common.files import write_json
from nanogpt_edit.data.samples import prompt_ids
from nanogpt_edit.evaluation import suite
from nanogpt_edit.evaluation.compare import compare_evaluations
from nanogpt_edit.evaluation.records import Comparison, read_recalls, read_records, write_told
from nanogpt_edit.evaluation.told import tell, to_tell
from nanogpt_edit.evaluation.transcript import transcript
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline import fitted
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.tracing.average import average_trace
from nanogpt_edit.tracing.tracing import trace_facts


def measure(inputs: RunInputs, folder: RunFolder, device: torch.device, stage: str, *, samples: int) -> GPT | None:
    """Measure the model of `stage` on all skills, with `samples` completions of each test problem.

    The model; or None where it was measured before.
    """
    if (folder.evaluations / f"{stage}.json").exists():
        return None
    model = folder.load(stage, device)
    config = replace(fitted.measuring(inputs, model), samples=samples)
    skills = fitted.skills(inputs, model, inputs.problems.test, what=f"evaluate {stage}")
    with autocast(device, inputs.recipe.precision):
        evaluation = suite.evaluate(model, skills, config, stage=stage)
    if distributed.is_first():
        comparisons = (f"compare_{stage}-*.json", f"compare_*-{stage}.json")
        for stale in (path for pattern in comparisons for path in folder.evaluations.glob(pattern)):
            stale.unlink()
        evaluation.save(folder.evaluations)
        told = tell(model, to_tell(evaluation.records), form=config.asked_as)
        write_told(folder.evaluations / f"{stage}_tokens.jsonl", told)
    return model


def compare(folder: RunFolder, before: str, after: str) -> None:
    """Two measured checkpoints, in pairs."""
    evaluations = folder.evaluations
    if not (evaluations / f"compare_{after}-{before}.json").exists():
        differences = compare_evaluations(evaluations / f"{before}.jsonl", evaluations / f"{after}.jsonl")
        Comparison(after, before, differences).save(evaluations)


def keep_transcript(model: GPT, folder: RunFolder) -> None:
    """One completion, token by token: the first correct one of the test problems."""
    tokenizer, stage = tokenizer_of(model), "grpo"
    records = [each for each in read_records(folder.evaluations / f"{stage}.jsonl") if each.skill == "problems"]
    if not records:
        return
    record = next((each for each in records if each.correct), records[0])
    told = transcript(
        prompt_ids(record.prompt, tokenizer),
        tokenizer.encode(record.text),
        tokenizer,
        stage=stage,
        gold=record.gold,
        correct=record.correct,
    )
    write_json(folder.evaluations / "transcript.json", asdict(told))


def trace(inputs: RunInputs, folder: RunFolder, device: torch.device) -> None:
    """Where the base model recalls its facts: causal tracing, averaged over those it knows."""
    path = folder.edits / "trace.json"
    if path.exists():
        return
    recalls = read_recalls(folder.evaluations / "base_facts.jsonl")
    known = {each.prompt for each in recalls if each.recalled}
    facts = [fact for fact in inputs.facts if fact.prompt in known] or list(inputs.facts)
    traced = trace_facts(folder.load("base", device), facts[: inputs.recipe.trace.facts], inputs.recipe.trace)
    write_json(path, asdict(average_trace(traced, stage="base")))
