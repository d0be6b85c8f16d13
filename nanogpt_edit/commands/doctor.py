"""`nanogpt-edit doctor RECIPE`: the silent failures of training, looked for before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.commands.arguments import Run, named_recipe
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.common.device import choose_device
from nanogpt_edit.doctor.findings import Finding
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline import fitted
from nanogpt_edit.pipeline.checks import check_data, check_model, check_sizes
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.new_model import new_model
from nanogpt_edit.pipeline.recipe import refuse_unread
from nanogpt_edit.pipeline.stages import data_of, examine_grpo, examine_pretrain, examine_sft, set_template

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
    inputs, folder = RunInputs(chosen.recipe), RunFolder(chosen.out)
    check_data(inputs, *data_of(chosen.recipe))
    start, start_name = newest(inputs, folder, device, ("base",))
    check_model(inputs, start)
    stages, findings = chosen.recipe.stages, list[Finding]()
    if start_name == UNTRAINED:
        print("Before pretraining")
        findings += tell(examine_pretrain(inputs, start))
    if "sft" in stages:
        set_template(start, chosen.recipe.sft)
        samples = fitted.training_samples(inputs, start)
        print(f"Before SFT, with {start_name}")
        findings += tell(examine_sft(inputs, start, samples))
    if "grpo" in stages:
        policy, policy_name = newest(inputs, folder, device, ("sft", "base"))
        print(f"Before GRPO, with {policy_name}")
        findings += tell(examine_grpo(inputs, policy, *fitted.grpo_problems(inputs, policy)))
        if "sft" in stages and policy_name != str(folder.model("sft")):
            print("(Signal is that of a model without SFT; ask again once there is one.)")
    if not findings:
        print("The recipe trains nothing, so there is nothing to look for; its data and its edit suit the model.")
    return 2 if any(finding.level == "fail" for finding in findings) else 0


def newest(inputs: RunInputs, folder: RunFolder, device: torch.device, stages: Sequence[str]) -> tuple[GPT, str]:
    """The first of these stages' models that is there, or what the run would start from; and its name."""
    for stage in stages:
        if folder.has_model(stage):
            return folder.load(stage, device), str(folder.model(stage))
    source = inputs.recipe.model.source
    if source is not None:
        return checkpoint.load(source, device=device), source
    return new_model(inputs, device), UNTRAINED


def tell(findings: list[Finding]) -> list[Finding]:
    """Print one line per finding, and hand them on."""
    for finding in findings:
        print(f"  {MARKS[finding.level]}  {finding}")
    return findings
