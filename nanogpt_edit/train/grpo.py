"""GRPO (Shao et al. 2024) with four changes from DAPO (Yu et al. 2025): an upper clip wider than the lower one, groups
without signal left out, a loss averaged over tokens instead of sequences, and an entropy bonus that decays.

A step: sample G completions of each of P problems, reward them, compare each with its group, and raise the
probability of the better ones. The sampler's log-probabilities are the old ones of the ratio ρ; the trainer uses the
same temperature and neither uses top-k or top-p, so on the first update after a rollout ρ must be 1. How far it is
from 1 is logged (`sampler_gap`) and checked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nanogpt_edit.data.problems import Problem, prompt_ids
from nanogpt_edit.engine.engine import Completion, Engine
from nanogpt_edit.engine.sampling import Sampling
from nanogpt_edit.errors import UserError
from nanogpt_edit.evaluate.suite import solve
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.progress import say
from nanogpt_edit.train.loop import LoopConfig, Trainer
from nanogpt_edit.train.losses import Advantage, GRPOTerms, group_advantages, grpo_loss, has_signal, token_logprobs
from nanogpt_edit.train.rewards import score
from nanogpt_edit.train.sft import rows_of_step
from nanogpt_edit.train.shared_prefix import completion_states

LARGEST_SAMPLER_GAP = 0.05  # nats; float32 stays under 1e-3, bfloat16 under this


@dataclass(frozen=True)
class GRPOConfig(LoopConfig):
    """How a model is improved by reinforcement learning."""

    problems_per_step: int = 64
    """Problems of one rollout (P)."""
    group_size: int = 8
    """Completions of each problem (G)."""
    temperature: float = 1.0
    """Of the sampler and of the trainer's log-probabilities."""
    max_new_tokens: int | None = None
    """A completion is cut after this many tokens (None: a quarter more than the longest worked solution has)."""
    rewards: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0})
    """Weight of each reward: accuracy, format, or any module:function."""
    advantage: Advantage = "zscore"
    """zscore divides by the group's standard deviation (GRPO), mean does not (Dr. GRPO)."""
    normalise: Literal["token", "sequence"] = "token"
    """What the loss is averaged over: all tokens of the step, or the tokens of each completion first."""
    updates_per_rollout: int = 1
    """Optimizer steps per rollout; each takes its share of the groups."""
    clip_low: float = 0.2
    """A token's probability ratio is not pushed below 1 - clip_low …"""
    clip_high: float = 0.28
    """… nor above 1 + clip_high."""
    kl_coef: float = 0.01
    """Weight of the divergence from the reference (the model at the start); 0 loads no reference."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus at the first step …"""
    final_entropy_coef: float = 0.001
    """… and at the last, linear between."""
    dynamic_sampling: Literal["skip", "refill", "off"] = "skip"
    """Groups whose rewards are all equal: skip drops them, refill samples further problems instead, off keeps them."""
    max_resample_rounds: int = 3
    """Most extra rollouts per step for refill."""
    evaluate_problems: int = 100
    """Validation problems looked at every `evaluate_every` steps."""
    evaluate_samples: int = 4
    """Completions of each, at temperature 0.7."""
    keep: Literal["best", "last"] = "best"
    """Which weights the stage leaves: the best on validation, or the last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2:
            raise UserError(f"group_size is {self.group_size}; a group needs at least 2 completions to compare.")
        if self.temperature <= 0:
            raise UserError(f"temperature is {self.temperature}; reinforcement learning must sample, use e.g. 1.")
        if not self.rewards or not any(self.rewards.values()):
            raise UserError('rewards is empty, nothing would be learned; use e.g. {"accuracy" = 1.0}.')

    def entropy_coef_at(self, step: int) -> float:
        done = step / max(1, self.steps - 1)
        return self.entropy_coef + (self.final_entropy_coef - self.entropy_coef) * done


@dataclass(frozen=True)
class RolloutGroup:
    """One problem, its G completions and what they were worth."""

    problem: Problem
    prompt: tuple[int, ...]
    completions: tuple[Completion, ...]
    rewards: Mapping[str, tuple[float, ...]]
    """By reward name, unweighted, one number per completion; accuracy and format are always among them."""
    total: Tensor
    """(G,) weighted sum of the rewards."""

    @property
    def has_signal(self) -> bool:
        return bool(has_signal(self.total[None])[0])

    @property
    def tokens(self) -> int:
        return sum(len(completion.token_ids) for completion in self.completions)


def grpo(
    model: GPT,
    problems: Sequence[Problem],
    validation: Sequence[Problem],
    config: GRPOConfig,
    *,
    seed: int,
    state: Path,
    log: Path,
) -> Trainer:
    """Improve `model` in place on `problems`, and leave its best (or last) weights in it."""
    reference = copy.deepcopy(model).eval() if config.kl_coef > 0 else None
    engine = Engine(model, max_slots=config.problems_per_step * config.group_size)
    trainer = Trainer(model, config, label="grpo", state=state, log=log)
    for step in trainer.steps():
        model.eval()  # no dropout in reinforcement learning: the policy that is trained is the one that was sampled
        metrics: dict[str, float] = {}
        if trainer.is_time_to_evaluate():
            metrics["val_pass_at_1"] = validation_accuracy(engine, validation, config, seed=seed)
            trainer.keep_if_best(metrics["val_pass_at_1"])
        sampled = list(rollouts(engine, problems, config, seed=seed, step=step))
        groups = [group for group in sampled if group.has_signal or config.dynamic_sampling == "off"]
        groups = groups[: config.problems_per_step]
        metrics |= describe(sampled)
        metrics |= update(model, reference, groups, config, trainer)
        trainer.log(
            metrics,
            tokens=sum(group.tokens for group in sampled),
            shown=("accuracy", "well_formed", "entropy", "mean_tokens", "val_pass_at_1"),
        )
        explain_stall(metrics, step)
    if config.keep == "best" and config.steps:
        trainer.keep_if_best(validation_accuracy(engine, validation, config, seed=seed))
    trainer.finish(use_best=config.keep == "best")
    return trainer


def rollouts(
    engine: Engine, problems: Sequence[Problem], config: GRPOConfig, *, seed: int, step: int
) -> Iterator[RolloutGroup]:
    """The groups of one step; with `refill`, further rounds until enough of them carry signal."""
    rounds = 1 + (config.max_resample_rounds if config.dynamic_sampling == "refill" else 0)
    with_signal = 0
    for number in range(rounds):
        chosen = rows_of_step(len(problems), rows=config.problems_per_step, seed=seed, step=step * rounds + number)
        for group in sample_groups(
            engine, [problems[i] for i in chosen], config, seed=seed, step=step * rounds + number
        ):
            with_signal += group.has_signal
            yield group
        if with_signal >= config.problems_per_step:
            return


def sample_groups(
    engine: Engine, problems: Sequence[Problem], config: GRPOConfig, *, seed: int, step: int
) -> list[RolloutGroup]:
    """`group_size` completions of each problem, with their rewards."""
    tokenizer = engine.model.tokenizer
    assert tokenizer is not None
    prompts = [prompt_ids(problem, tokenizer) for problem in problems]
    sampling = Sampling(
        temperature=config.temperature,
        top_k=None,
        max_new_tokens=config.max_new_tokens or engine.model.config.block_size,
        seed=int(np.random.default_rng([seed, step]).integers(2**62)),
    )
    completions = engine.generate(
        prompts, n=config.group_size, sampling=sampling, stop_ids=frozenset({tokenizer.answer_end})
    )
    groups = []
    for i, problem in enumerate(problems):
        own = completions[i * config.group_size : (i + 1) * config.group_size]
        texts = [tokenizer.decode(completion.token_ids) for completion in own]
        rewards = score({"accuracy": 0.0, "format": 0.0} | config.rewards, problem, texts)
        total = sum(torch.tensor(rewards[name]) * weight for name, weight in config.rewards.items())
        assert isinstance(total, Tensor)
        groups.append(
            RolloutGroup(
                problem=problem,
                prompt=tuple(prompts[i]),
                completions=tuple(own),
                rewards={name: tuple(values) for name, values in rewards.items()},
                total=total,
            )
        )
    return groups


def update(
    model: GPT, reference: GPT | None, groups: Sequence[RolloutGroup], config: GRPOConfig, trainer: Trainer
) -> dict[str, float]:
    """Optimizer steps on the groups of one rollout -> what the loss was made of."""
    entropy_coef = config.entropy_coef_at(trainer.step)
    metrics = {"loss": 0.0, "kl": 0.0, "entropy": 0.0, "clip_low_share": 0.0, "clip_high_share": 0.0}
    metrics |= {"grad_norm": 0.0, "sampler_gap": 0.0, "entropy_coef": entropy_coef}
    parts = [
        part for part in (groups[i :: config.updates_per_rollout] for i in range(config.updates_per_rollout)) if part
    ]
    for number, part in enumerate(parts):
        tokens = sum(group.tokens for group in part)
        for micro_batch in group_batches(part, max_tokens=config.micro_batch_tokens):
            terms = group_terms(
                model,
                reference,
                micro_batch,
                config,
                tokens=tokens,
                groups_of_update=len(part),
                entropy_coef=entropy_coef,
            )
            terms.loss.backward()
            metrics["loss"] += terms.loss.item() / len(parts)
            metrics["kl"] += terms.kl / len(parts)
            metrics["entropy"] += terms.entropy / len(parts)
            metrics["clip_low_share"] += terms.clipped_low / len(parts)
            metrics["clip_high_share"] += terms.clipped_high / len(parts)
            if number == 0:
                metrics["sampler_gap"] = max(metrics["sampler_gap"], terms.largest_log_ratio)
        metrics["grad_norm"] = max(metrics["grad_norm"], trainer.apply_gradients())
    if metrics["sampler_gap"] > LARGEST_SAMPLER_GAP:
        say(
            f"grpo: step {trainer.step}: sampler and trainer disagree by {metrics['sampler_gap']:.3f} nats on a token "
            f"they should agree on; the update is off-policy by that much."
        )
    return metrics


def group_terms(
    model: GPT,
    reference: GPT | None,
    groups: Sequence[RolloutGroup],
    config: GRPOConfig,
    *,
    tokens: int,
    groups_of_update: int,
    entropy_coef: float,
) -> GRPOTerms:
    """The loss of some groups as their part of an update over `tokens` tokens in `groups_of_update` groups."""
    prompts = [group.prompt for group in groups]
    completions = [[completion.token_ids for completion in group.completions] for group in groups]
    states, targets = completion_states(model, prompts, completions)
    logprobs, entropy = token_logprobs(token_logits(model, states), targets, temperature=config.temperature)
    ref_logprobs = None
    if reference is not None:
        with torch.no_grad():
            ref_states, _ = completion_states(reference, prompts, completions)
            ref_logits = token_logits(reference, ref_states)
            ref_logprobs, _ = token_logprobs(ref_logits, targets, temperature=config.temperature)
    every = [completion for group in groups for completion in group.completions]
    lengths = torch.tensor([len(completion.token_ids) for completion in every])
    per_completion = torch.cat([group_advantages(group.total[None], advantage=config.advantage)[0] for group in groups])
    if config.normalise == "token":
        weight_per_completion = torch.full((len(every),), 1 / tokens)
    else:
        weight_per_completion = 1 / (lengths * groups_of_update * config.group_size)
    return grpo_loss(
        logprobs,
        torch.tensor([value for completion in every for value in completion.logprobs], device=model.device),
        ref_logprobs,
        entropy,
        per_completion.repeat_interleave(lengths).to(model.device),
        weight_per_completion.repeat_interleave(lengths).to(model.device),
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        kl_coef=config.kl_coef,
        entropy_coef=entropy_coef,
    )


def token_logits(model: GPT, states: Tensor) -> Tensor:
    """(N, D) -> (N, V), for the V tokens there are: as the sampler, without the padding of the vocabulary."""
    assert model.tokenizer is not None
    return model.logits(states)[:, : model.tokenizer.vocab_size]


def group_batches(groups: Sequence[RolloutGroup], *, max_tokens: int) -> Iterator[list[RolloutGroup]]:
    """Whole groups of like length together, at most about `max_tokens` padded completion tokens each."""
    batch: list[RolloutGroup] = []
    for group in sorted(groups, key=longest):
        rows = (len(batch) + 1) * len(group.completions)
        if batch and rows * longest(group) > max_tokens:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def longest(group: RolloutGroup) -> int:
    return max(len(completion.token_ids) for completion in group.completions)


def describe(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """What a rollout looked like: rewards, accuracy, lengths, share of groups without signal."""
    every = [completion for group in groups for completion in group.completions]
    lengths = np.array([len(completion.token_ids) for completion in every])
    names = groups[0].rewards.keys()
    means = {f"reward_{name}": float(np.mean([group.rewards[name] for group in groups])) for name in names}
    return {
        "reward": float(np.mean([group.total.mean().item() for group in groups])),
        **means,
        "accuracy": means["reward_accuracy"],
        "well_formed": means["reward_format"],
        "groups_dropped": float(np.mean([not group.has_signal for group in groups])),
        "mean_tokens": float(lengths.mean()),
        "max_tokens": float(lengths.max()),
        "truncated": float(np.mean([completion.finish_reason == "length" for completion in every])),
    }


def validation_accuracy(engine: Engine, problems: Sequence[Problem], config: GRPOConfig, *, seed: int) -> float:
    """pass@1 at temperature 0.7 on the first `evaluate_problems` validation problems, always with the same seed."""
    limit = config.max_new_tokens or engine.model.config.block_size
    sampling = Sampling(temperature=0.7, top_k=50, max_new_tokens=limit, seed=seed)
    records = solve(
        engine, problems[: config.evaluate_problems], n=config.evaluate_samples, sampling=sampling, skill="validation"
    )
    return float(np.mean([record.correct for record in records]))


def explain_stall(metrics: Mapping[str, float], step: int) -> None:
    """Say in words why nothing is learned, when nothing is."""
    if metrics["truncated"] == 1:
        say(f"grpo: step {step}: every completion was cut at its length limit; raise grpo.max_new_tokens.")
    elif metrics["groups_dropped"] == 1:
        say(
            f"grpo: step {step}: in every group all rewards are equal (mean {metrics['reward']:.2f}), so there is "
            f"nothing to learn from; the problems are too easy or too hard for this model."
        )
