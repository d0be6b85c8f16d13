"""The doctor's checks of the model: its weights, the trainer against the sampler, the signal of a first rollout."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from nanogpt_edit.doctor.findings import Finding
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.training.config import LoopConfig
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.rollouts import RolloutGroup, describe
from nanogpt_edit.training.stall_watch import LARGEST_SAMPLER_GAP, why_stalled
from nanogpt_edit.training.update import UpdateSize, frozen, group_terms

PROBLEMS_ASKED = 16  # of the first rollout
GROUPS_COMPARED = 4  # trainer against sampler: where the two differ nearly every token shows it
LITTLE_SIGNAL = 0.2  # share of groups
FAR_OFF = 0.5  # nats between sampler and trainer: not rounding, but two different models


def check_weights(model: GPT) -> Finding:
    """Is every weight a number? (Generation refuses a model of which this is not so; SFT would skip every step.)"""
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if not broken:
        return Finding("weights", "ok", "all are finite numbers")
    return Finding(
        "weights",
        "fail",
        f"{len(broken)} tensors hold values that are not finite (the first: {broken[0]})",
        "take an earlier checkpoint, or fetch the model again",
    )


def check_warmup(config: LoopConfig) -> Finding:
    """Does the learning rate reach its peak?"""
    if config.warmup_steps < config.steps:
        return Finding("warm-up", "ok", f"{config.warmup_steps} of {config.steps} steps")
    return Finding(
        "warm-up",
        "warn",
        f"{config.warmup_steps} steps of {config.steps}, so the learning rate never reaches its peak",
        "lower warmup_steps",
    )


def check_agreement(model: GPT, groups: Sequence[RolloutGroup], config: GRPOConfig) -> list[Finding]:
    """Trainer against sampler, and policy against reference, on tokens that were just sampled: both must be equal."""
    groups = [replace(group, takes_part=(True,) * len(group.completions)) for group in groups[:GROUPS_COMPARED]]
    reference = frozen(copy.deepcopy(model).eval())
    was_training = model.training
    model.eval()
    with torch.no_grad():
        terms, _ = group_terms(model, reference, groups, config, size=UpdateSize.of(groups), entropy_coef=0.0)
    model.train(was_training)
    gap = terms.largest_log_ratio
    agreement = Finding("sampler and trainer", "ok", f"their log-probabilities differ by at most {gap:.1e} nats")
    if gap > LARGEST_SAMPLER_GAP:
        agreement = Finding(
            "sampler and trainer",
            "fail" if gap > FAR_OFF else "warn",
            f"their log-probabilities of a token differ by {gap:.2f} nats, so every update is off-policy by that much",
            "use float32, and the same temperature on both sides",
        )
    kl = abs(terms.kl / terms.weight)
    start = Finding("reference", "ok", "equals the policy at step 0 (KL is 0)")
    if kl > 1e-6:
        start = Finding(
            "reference",
            "fail",
            f"the KL between the policy and its own copy is {kl:.1e}, where it must be 0",
            "the model's forward pass is not deterministic: turn off dropout and anything else that is random in it",
        )
    return [agreement, start]


def check_signal(groups: Sequence[RolloutGroup]) -> Finding:
    """What share of the groups has something to learn from?"""
    metrics = describe(groups)
    share = 1 - metrics["groups_dropped"]
    found = (
        f"{share:.0%} of {len(groups)} first groups carry signal (accuracy {metrics['accuracy']:.0%}, well-formed "
        f"{metrics['well_formed']:.0%}, truncated {metrics['truncated']:.0%})"
    )
    if share > LITTLE_SIGNAL:
        return Finding("signal", "ok", found)
    easier = "harder" if metrics["accuracy"] > 0.5 else "easier"
    reason = why_stalled(metrics) or f"give it {easier} problems, or larger groups."
    return Finding("signal", "warn", found, reason.rstrip("."))
