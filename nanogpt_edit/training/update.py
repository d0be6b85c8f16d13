"""The optimizer steps on one rollout: groups in micro-batches, through the policy and the reference, to the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from nanogpt_edit.common import distributed
from nanogpt_edit.data.batch import within_budget
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.head import head_logprobs, target_logprobs
from nanogpt_edit.model.ragged import completion_states
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.losses import GRPOTerms, grpo_loss
from nanogpt_edit.training.policy_losses import most_uncertain
from nanogpt_edit.training.rollouts import RolloutGroup
from nanogpt_edit.training.trainer import Trainer

Reference = Callable[[GPT], AbstractContextManager[GPT]]
"""What the policy is held against, as long as a `with` lasts: another model, or the policy itself without what it has
learned (`Lora.off`)."""

MEANS = ("kl", "entropy", "clip_low_share", "clip_high_share")  # over tokens, weighted as in the loss


def frozen(model: GPT) -> Reference:
    """A model that nothing changes, as the reference."""
    return lambda policy: nullcontext(model)


@dataclass(frozen=True)
class UpdateSize:
    """What the loss of one optimizer step is divided by: counts over all its groups, whatever the micro-batches."""

    tokens: int
    completions: int

    @staticmethod
    def of(groups: Sequence[RolloutGroup]) -> UpdateSize:
        lengths = [length for group in groups for length in lengths_in_loss(group) if length]
        return UpdateSize(tokens=sum(lengths), completions=len(lengths))


@dataclass(frozen=True)
class GroupDetail:
    """A trained group's tokens as the trainer saw them: of each completion, one number per token."""

    number: int
    """Of the group, among those of the step."""
    entropy: tuple[tuple[float, ...], ...]
    clipped: tuple[tuple[int, ...], ...]
    """-1 held back by 1 - clip_low, 1 by 1 + clip_high, 0 free."""


@dataclass(frozen=True)
class Updated:
    """What the updates on a rollout did: the metrics, and what every trained group's tokens were like."""

    metrics: dict[str, float]
    details: tuple[GroupDetail, ...] = ()


def update(
    reference: Reference | None, groups: Sequence[RolloutGroup], config: GRPOConfig, trainer: Trainer
) -> Updated:
    """Optimizer steps on the groups of one rollout; a metric that nothing was measured of is NaN."""
    entropy_coef = config.entropy_coef_at(trainer.step)
    shares = min(config.updates_per_rollout, len(groups))
    parts = [groups[i::shares] for i in range(shares)]
    parts = [part for part in parts if UpdateSize.of(part).tokens]
    metrics = dict.fromkeys(("loss", *MEANS, "grad_norm", "sampler_gap"), 0.0 if parts else math.nan)
    details: list[GroupDetail] = []
    for number, part in enumerate(parts):
        done = descend(reference, part, config, trainer, entropy_coef=entropy_coef)
        details += done.details
        for name in ("loss", *MEANS):
            metrics[name] += done.metrics[name] / len(parts)
        if number == 0:
            metrics["sampler_gap"] = done.metrics["sampler_gap"]
        metrics["grad_norm"] = max(metrics["grad_norm"], done.metrics["grad_norm"])
    if reference is None:
        metrics["kl"] = math.nan
    metrics |= {"updates": len(parts), "entropy_coef": entropy_coef}
    return Updated(metrics, tuple(details))


def descend(
    reference: Reference | None,
    groups: Sequence[RolloutGroup],
    config: GRPOConfig,
    trainer: Trainer,
    *,
    entropy_coef: float,
) -> Updated:
    """One optimizer step, and what its loss was made of; the groups are dealt out to the processes."""
    size = UpdateSize.of(groups)
    passes: list[tuple[GRPOTerms, list[GroupDetail]]] = []

    def loss(policy: GPT, batch: Sequence[RolloutGroup]) -> Tensor:
        terms, details = group_terms(policy, reference, batch, config, size=size, entropy_coef=entropy_coef)
        passes.append((replace(terms, loss=terms.loss.detach()), details))
        return terms.loss

    batches = list(group_batches(distributed.shard(groups), max_tokens=trainer.tokens_at_once))
    metrics = {"loss": trainer.parallel.backward(loss, batches, dummy=groups[:1])}
    own = passes[: len(batches)]  # what comes after them is there for the other processes' sake
    sums, gap = [0.0] * (1 + len(MEANS)), 0.0
    for terms, _ in own:
        row = (terms.weight, terms.kl, terms.entropy, terms.clipped_low, terms.clipped_high)
        sums = [before + new for before, new in zip(sums, row, strict=True)]
        gap = max(gap, terms.largest_log_ratio)
    weight, *rest = distributed.all_reduce_sum(sums)
    metrics |= {name: value / weight for name, value in zip(MEANS, rest, strict=True)}
    metrics["sampler_gap"] = distributed.all_reduce_max([gap])[0]
    gathered = distributed.all_gather([detail for _, details in own for detail in details])
    metrics["grad_norm"] = trainer.apply_gradients()
    return Updated(metrics, tuple(detail for each in gathered for detail in each))


def group_terms(
    model: GPT,
    reference: Reference | None,
    groups: Sequence[RolloutGroup],
    config: GRPOConfig,
    *,
    size: UpdateSize,
    entropy_coef: float,
) -> tuple[GRPOTerms, list[GroupDetail]]:
    """The loss of some groups as their part of an update of `size`, and what their tokens were like."""
    prompts = [group.prompt for group in groups]
    completions = [[completion.token_ids for completion in group.completions] for group in groups]
    ref_logprobs = None
    if reference is not None:
        with torch.no_grad(), reference(model) as other:
            states, targets = completion_states(other, prompts, completions)
            ref_logprobs = target_logprobs(states, vocabulary(other), targets, temperature=config.temperature)
    states, targets = completion_states(model, prompts, completions)
    logprobs, entropy = head_logprobs(states, vocabulary(model), targets, temperature=config.temperature)
    every = [completion for group in groups for completion in group.completions]
    lengths = torch.tensor([len(completion.token_ids) for completion in every])
    uncertain = None
    if config.uncertain_share < 1:
        uncertain = most_uncertain(entropy, [group.tokens for group in groups], config.uncertain_share)
    advantages = torch.cat([group.advantages for group in groups])
    weights = completion_weights(groups, config, size=size, longest=model.config.block_size)
    terms = grpo_loss(
        logprobs,
        torch.tensor([value for completion in every for value in completion.logprobs], device=model.device),
        ref_logprobs,
        entropy,
        advantages.repeat_interleave(lengths).to(model.device),
        weights.repeat_interleave(lengths).to(model.device),
        objective=config.objective,
        lengths=lengths.tolist(),
        uncertain=uncertain,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        kl_coef=config.kl_coef,
        entropy_coef=entropy_coef,
    )
    return terms, group_details(groups, entropy, terms.clipped)


def completion_weights(groups: Sequence[RolloutGroup], config: GRPOConfig, *, size: UpdateSize, longest: int) -> Tensor:
    """(completions,) what each token of a completion counts in the loss; 0 where it takes no part."""
    lengths = torch.tensor([length for group in groups for length in lengths_in_loss(group)])
    if config.normalise == "token":
        weights = torch.full((len(lengths),), 1 / size.tokens)
    elif config.normalise == "sequence":
        weights = 1 / (lengths * size.completions)
    else:
        weights = torch.full((len(lengths),), 1 / (size.completions * (config.max_new_tokens or longest)))
    return weights.masked_fill(lengths == 0, 0.0)


def lengths_in_loss(group: RolloutGroup) -> list[int]:
    """Tokens of each completion that the loss sees: all of them, or 0."""
    return [
        len(completion.token_ids) if part else 0
        for completion, part in zip(group.completions, group.takes_part, strict=True)
    ]


def group_details(groups: Sequence[RolloutGroup], entropy: Tensor, clipped: Tensor) -> list[GroupDetail]:
    """Flat tensors over all tokens -> one record per group."""
    entropies, flags = iter(entropy.detach().tolist()), iter(clipped.tolist())
    details: list[GroupDetail] = []
    for group in groups:
        lengths = [len(completion.token_ids) for completion in group.completions]
        details.append(
            GroupDetail(
                group.number,
                entropy=tuple(tuple(islice(entropies, length)) for length in lengths),
                clipped=tuple(tuple(islice(flags, length)) for length in lengths),
            )
        )
    return details


def vocabulary(model: GPT) -> Tensor:
    """(V, D): the head's rows of the V tokens there are, as the sampler has it, without the vocabulary's padding."""
    return model.head_weight[: tokenizer_of(model).vocab_size]


def group_batches(groups: Sequence[RolloutGroup], *, max_tokens: int) -> Iterator[list[RolloutGroup]]:
    """Whole groups of like length together, at most `max_tokens` tokens of prompts and completions (or one group)."""
    return within_budget(sorted(groups, key=longest), tokens_of, max_tokens=max_tokens)


def longest(group: RolloutGroup) -> int:
    return max(len(completion.token_ids) for completion in group.completions)


def tokens_of(group: RolloutGroup) -> int:
    """How many go through the model: the prompt's once, for its completions share it."""
    return len(group.prompt) + sum(len(completion.token_ids) for completion in group.completions)
