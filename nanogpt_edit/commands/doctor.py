"""`nanogpt-edit doctor RECIPE`: the silent failures of training, looked for before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.commands.arguments import Run, named_recipe
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.common.device import choose_device
from nanogpt_edit.doctor.findings import Finding
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline.checks import check_data, check_model, check_sizes
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.pipeline import Pipeline
from nanogpt_edit.pipeline.recipe import refuse_unread

UNTRAINED = "an untrained model"
MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def examine(arguments: list[str]) -> int:
    """The verb `doctor`: exits with 2 when a check fails. It changes nothing.

    The models are those of the run's folder as far as it has come, else the recipe's source, else an untrained one.
    """
    name, recipe, rest = named_recipe(arguments, verb="doctor")
    chosen = parse(Run, rest, verb=f"doctor {name}", default=Run(recipe=recipe, out=Path("runs") / recipe.name))
    refuse_unread(chosen.recipe, recipe)
    check_sizes(chosen.recipe)
    device = choose_device(chosen.recipe.device, threads=chosen.recipe.threads)
    pipeline = Pipeline(chosen.recipe, RunFolder(chosen.out), device)
    check_data(pipeline)
    start, start_name = newest(pipeline, ("base",))
    check_model(pipeline, start)
    findings = []
    if start_name == UNTRAINED:
        print("Before pretraining")
        findings += tell(pipeline.examine_pretrain(start))
    samples = pipeline.training_samples(start)
    print(f"Before SFT, with {start_name}")
    findings += tell(pipeline.examine_sft(start, samples))
    policy, policy_name = newest(pipeline, ("sft", "base"))
    print(f"Before GRPO, with {policy_name}")
    findings += tell(pipeline.examine_grpo(policy, *pipeline.grpo_problems(policy)))
    if policy_name != str(pipeline.folder.model("sft")):
        print("(Signal is that of a model without SFT; ask again once there is one.)")
    return 2 if any(finding.level == "fail" for finding in findings) else 0


def newest(pipeline: Pipeline, stages: Sequence[str]) -> tuple[GPT, str]:
    """The first of these stages' models that is there, or what the run would start from; and its name."""
    for stage in stages:
        if pipeline.folder.has_model(stage):
            return pipeline.load(stage), str(pipeline.folder.model(stage))
    source = pipeline.recipe.model.source
    if source is not None:
        return checkpoint.load(source, device=pipeline.device), source
    return pipeline.new_model(), UNTRAINED


def tell(findings: list[Finding]) -> list[Finding]:
    """Print one line per finding, and hand them on."""
    for finding in findings:
        print(f"  {MARKS[finding.level]}  {finding}")
    return findings
