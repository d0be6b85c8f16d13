"""The silent failures of training, each looked for in a moment: what was checked, what was found, what to do.

A run with any of these goes on without an error and teaches the wrong thing, or nothing: a reward that its own gold
answer does not earn, a loss that never sees the stop token, a prompt that ends in another token than the one generation
starts from, a trainer that disagrees with the sampler. Every check is a small function that returns a `Finding`;
`check_pretrain`, `check_sft` and `check_grpo` are those of a stage.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from nanogpt_edit.data.problems import Problem, Sample, prompt_ids, to_sample
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.errors import UserError
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.train.chunked_loss import CHUNK_NUMBERS, KEPT_NUMBERS
from nanogpt_edit.train.grpo_config import GRPOConfig
from nanogpt_edit.train.loop import LoopConfig
from nanogpt_edit.train.policy_update import LARGEST_SAMPLER_GAP, UpdateSize, group_terms
from nanogpt_edit.train.rewards import BUILT_IN, score
from nanogpt_edit.train.rollouts import RolloutGroup, describe, sample_groups, why_stalled

Level = Literal["ok", "warn", "fail"]
PROBLEMS_LOOKED_AT = 100  # of rewards, masks and prompts
PROBLEMS_ASKED = 16  # of the first rollout
LITTLE_SIGNAL = 0.2  # share of groups
FAR_OFF = 0.5  # nats between sampler and trainer: not rounding, but two different models
GIBIBYTE = 2**30


@dataclass(frozen=True)
class Finding:
    """What one check found: `Finding("stop token", "fail", "no loss mask covers </answer>", "…")`."""

    check: str
    level: Level
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def verdict(findings: Sequence[Finding], *, stage: str) -> str:
    """All findings in one line: how many checks, and what is not fine. Raises UserError when one of them failed."""
    if failed := [str(finding) for finding in findings if finding.level == "fail"]:
        raise UserError(f"the doctor stops {stage} before it begins. {'. '.join(failed)}.")
    warned = [str(finding) for finding in findings if finding.level == "warn"]
    if not warned:
        return f"Doctor before {stage}: {len(findings)} checks, all fine."
    return f"Doctor before {stage}: {len(findings)} checks, {len(warned)} to look at. {'. '.join(warned)}."


# --- stages ------------------------------------------------------------------------------------------------------


def check_pretrain(model: GPT, documents: Sequence[str], held_out: Sequence[str], config: LoopConfig) -> list[Finding]:
    """Everything that can be seen before pretraining on `documents`; `held_out` is what the perplexity is of."""
    return [
        check_held_out(documents, held_out),
        check_memory(training_bytes(model, config), available_bytes(model.device)),
    ]


def check_sft(
    model: GPT, train: Sequence[Problem], test: Sequence[Problem], samples: Sequence[Sample], config: LoopConfig
) -> list[Finding]:
    """Everything that can be seen before SFT; `samples` are those of `train` that fit."""
    tokenizer = tokenizer_of(model)
    problems = train[:PROBLEMS_LOOKED_AT]
    return [
        check_targets(samples, tokenizer),
        check_prompts(problems, [to_sample(problem, tokenizer) for problem in problems], tokenizer),
        check_leak(train, test),
        check_lengths(samples, problems=len(train), block_size=model.config.block_size),
        check_weights(model),
        check_memory(training_bytes(model, config), available_bytes(model.device)),
    ]


def check_grpo(
    model: GPT, train: Sequence[Problem], test: Sequence[Problem], config: GRPOConfig, *, seed: int
) -> list[Finding]:
    """Everything that can be seen before GRPO; the model writes a first, small rollout."""
    groups = first_rollout(model, train, config, seed=seed)
    return [
        check_gold(train[:PROBLEMS_LOOKED_AT], tokenizer_of(model), config),
        check_leak(train, test),
        *check_agreement(model, groups, config),
        check_signal(groups),
        check_memory(training_bytes(model, config), available_bytes(model.device)),
    ]


def first_rollout(model: GPT, train: Sequence[Problem], config: GRPOConfig, *, seed: int) -> list[RolloutGroup]:
    """A few groups as the first step will sample them."""
    engine = Engine(model, max_slots=PROBLEMS_ASKED * config.group_size)
    return sample_groups(engine, train[:PROBLEMS_ASKED], config, seed=seed, step=0)


def tokenizer_of(model: GPT) -> Tokenizer:
    """Raises UserError for a model without one."""
    if model.tokenizer is None:
        raise UserError("the model has no tokenizer; load it from a directory that has one.")
    return model.tokenizer


# --- the data ----------------------------------------------------------------------------------------------------


def check_gold(problems: Sequence[Problem], tokenizer: Tokenizer, config: GRPOConfig) -> Finding:
    """Does the worked solution itself, as the model would write it, earn 1 from every reward?

    Of a function of one's own the scale is unknown: there it is only a warning.
    """
    poor: dict[str, list[str]] = {}
    for problem in problems:
        ids = to_sample(problem, tokenizer).token_ids[len(prompt_ids(problem, tokenizer)) :]
        text = tokenizer.decode(ids)
        for name, (value,) in score(config.rewards, problem, [text]).items():
            if value < 1:
                poor.setdefault(name, []).append(f"{problem.id} earns {value:g}")
    if not poor:
        return Finding("gold answers", "ok", f"{len(problems)} worked solutions earn 1 from every reward")
    broken = any(name in BUILT_IN and len(cases) > len(problems) / 2 for name, cases in poor.items())
    found = "; ".join(f'reward "{name}": {len(cases)} of {len(problems)}, {cases[0]}' for name, cases in poor.items())
    return Finding(
        "gold answers",
        "fail" if broken else "warn",
        f"worked solutions that do not earn 1 ({found})",
        "look at these problems' answers and at the reward's way of reading them",
    )


def check_targets(samples: Sequence[Sample], tokenizer: Tokenizer) -> Finding:
    """Is there something to learn in every row, and is the stop token part of it?"""
    empty = sum(not any(sample.loss_mask) for sample in samples)
    if empty:
        return Finding(
            "loss mask",
            "fail",
            f"{empty} of {len(samples)} examples have no target token",
            "their loss mask must be 1 from <think> on",
        )
    endless = sum(not (sample.loss_mask[-1] and sample.token_ids[-1] == tokenizer.answer_end) for sample in samples)
    if endless:
        return Finding(
            "loss mask",
            "fail",
            f"{endless} of {len(samples)} examples do not end in </answer> as a target: the model never learns to stop",
            "end every example with </answer>, and its loss mask with 1",
        )
    return Finding("loss mask", "ok", f"{len(samples)} examples have targets, </answer> the last of them")


def check_prompts(problems: Sequence[Problem], samples: Sequence[Sample], tokenizer: Tokenizer) -> Finding:
    """Does training put the first target right behind the same tokens that generation starts from?"""
    for problem, sample in zip(problems, samples, strict=True):
        prompt = tuple(prompt_ids(problem, tokenizer))
        trained = sample.token_ids[: sample.loss_mask.index(1)] if 1 in sample.loss_mask else sample.token_ids
        if trained != prompt:
            last = [repr(tokenizer.token_text(ids[-1])) if ids else "nothing" for ids in (trained, prompt)]
            return Finding(
                "prompt",
                "fail",
                f"problem {problem.id}: training's prompt ends in {last[0]}, generation's in {last[1]}",
                "both must be the same tokens; a space before <think> is the usual cause",
            )
        if tokenizer.token_text(prompt[-1]).isspace():
            return Finding(
                "prompt",
                "warn",
                f"problem {problem.id}: the prompt ends in a token that is only a space",
                "strip the question",
            )
    return Finding("prompt", "ok", f"{len(samples)} prompts end where generation begins")


def check_leak(train: Sequence[Problem], test: Sequence[Problem]) -> Finding:
    """Is a test question among the training problems, up to case and spaces?"""
    seen = {same(problem.question) for problem in train}
    shared = [problem.id for problem in test if same(problem.question) in seen]
    if not shared:
        return Finding("test questions", "ok", f"none of {len(test)} is among {len(train)} training problems")
    return Finding(
        "test questions",
        "fail",
        f"{len(shared)} of {len(test)} are also trained on (the first: {shared[0]})",
        "take them out of the training file",
    )


def check_held_out(documents: Sequence[str], held_out: Sequence[str]) -> Finding:
    """Is any held-out document also trained on?"""
    seen = {same(document) for document in documents}
    shared = sum(same(document) in seen for document in held_out)
    if not shared:
        return Finding("held-out text", "ok", f"none of {len(held_out)} documents is trained on")
    return Finding(
        "held-out text",
        "warn",
        f"{shared} of {len(held_out)} documents are also trained on, so their perplexity says nothing",
        "take them out of the base text",
    )


def same(text: str) -> str:
    """Texts that are the same up to case and spaces are equal here."""
    return " ".join(text.lower().split())


def check_lengths(samples: Sequence[Sample], *, problems: int, block_size: int) -> Finding:
    """How many of the problems became examples, that is, fit in block_size?"""
    if left_out := problems - len(samples):
        return Finding(
            "lengths",
            "warn",
            f"{left_out} of {problems} examples exceed block_size {block_size} and are left out",
            "use a model with a larger block_size",
        )
    longest = max(len(sample.token_ids) for sample in samples)
    return Finding("lengths", "ok", f"the longest example has {longest} of at most {block_size} tokens")


# --- the model ---------------------------------------------------------------------------------------------------


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


def check_agreement(model: GPT, groups: Sequence[RolloutGroup], config: GRPOConfig) -> list[Finding]:
    """Trainer against sampler, and policy against reference, on tokens that were just sampled: both must be equal."""
    groups = [replace(group, takes_part=(True,) * len(group.completions)) for group in groups[:PROBLEMS_ASKED]]
    reference = copy.deepcopy(model).eval()
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


def check_memory(needed: int, available: int | None) -> Finding:
    """Does the estimate fit in what the machine has free?"""
    found = f"about {needed / GIBIBYTE:.2g} GiB needed"
    if available is None:
        return Finding("memory", "ok", f"{found}; how much is free is not known here")
    found += f", {available / GIBIBYTE:.2g} GiB free"
    if needed <= available:
        return Finding("memory", "ok", found)
    return Finding("memory", "warn", found, "lower micro_batch_tokens, or the rows of a step")


def training_bytes(model: GPT, config: LoopConfig) -> int:
    """Roughly what one step holds at its peak: weights, gradients, moments, activations, logits; GRPO's cache.

    Kept per token and block are the two norms' inputs and outputs, queries, keys, values, what attention gives, and the
    two sides of the MLP's nonlinearity; attention itself keeps no scores. With activation checkpointing it is what goes
    into each block, and one block's share of the rest. Of the logits a chunk is held three times: as log-probabilities,
    as probabilities, and as their gradient; GRPO keeps those of a micro-batch, up to KEPT_NUMBERS.
    """
    shape, size = model.config, next(model.parameters()).element_size()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    copies = 4 + (isinstance(config, GRPOConfig) and config.kl_coef > 0)  # weights, gradients, two moments; reference
    tokens, per_block = config.micro_batch_tokens, 9 * shape.n_embd + 3 * shape.mlp_size
    per_token = shape.n_layer * (shape.n_embd if config.activation_checkpointing else per_block)
    per_token += per_block if config.activation_checkpointing else 0
    logits = tokens * shape.vocab_size
    total = (parameters * copies + tokens * per_token) * size + 3 * 4 * min(logits, CHUNK_NUMBERS)
    if isinstance(config, GRPOConfig):
        total += 4 * min(logits, KEPT_NUMBERS)
        rows = config.problems_per_step * config.group_size
        total += rows * KVCache.row_bytes(shape, capacity=config.max_new_tokens or shape.block_size, dtype=model.dtype)
    return total


def available_bytes(device: torch.device) -> int | None:
    """Memory that is free on the device; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
