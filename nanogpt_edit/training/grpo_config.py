"""The settings of GRPO. See `grpo.py` for the algorithm they steer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nanogpt_edit.common.errors import UserError, at_least
from nanogpt_edit.engine.sampling_config import check_temperature
from nanogpt_edit.training.config import Keep, TuningConfig

Advantage = Literal["zscore", "mean", "batch"]
Objective = Literal["clip", "gspo", "cispo", "sapo"]
MOST_ROUNDS = 100


@dataclass(frozen=True)
class GRPOConfig(TuningConfig):
    """How a model is improved by reinforcement learning."""

    problems_per_step: int = 64
    """Problems of one rollout (P)."""
    group_size: int = 8
    """Completions of each problem (G)."""
    temperature: float = 1.0
    """Of the sampler and of the trainer's log-probabilities."""
    max_new_tokens: int | None = None
    """A completion is cut after this many tokens (None: a quarter more than 99 of 100 worked solutions have)."""
    rewards: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0})
    """Weight of each reward: accuracy, format, length, cosine, repetition, or any importable
    module:function(problem, completion_text). On the command line: accuracy=1 format=0.1."""
    overlong_penalty: float = 0.0
    """Most that is taken off the reward of a long completion (1 in DAPO; 0: nothing)."""
    overlong_share: float = 0.2
    """The penalty rises linearly over this last share of max_new_tokens."""
    mask_truncated: bool = False
    """Leave completions that were cut at max_new_tokens out of the loss; in their group's mean they still count."""
    advantage: Advantage = "zscore"
    """zscore divides by the group's standard deviation (GRPO), mean does not (Dr. GRPO), batch divides by that of the
    whole rollout (Lite PPO)."""
    objective: Objective = "clip"
    """What the policy climbs: clip (PPO), gspo (the ratio of whole completions; its authors' clip_low and clip_high are
    3e-4 and 4e-4), cispo (a bounded weight, no token dropped), sapo (a soft gate; clip_low and clip_high unused)."""
    uncertain_share: float = 1.0
    """Only this share of a group's tokens, those of highest entropy, has a policy gradient (0.2: Wang et al. 2025)."""
    normalise: Literal["token", "sequence", "constant"] = "token"
    """What the loss is averaged over: all tokens of the step (DAPO), the tokens of each completion first (GRPO), or a
    constant, completions × max_new_tokens (Dr. GRPO; needs a larger learning rate)."""
    updates_per_rollout: int = 1
    """Optimizer steps per rollout; each takes its share of the groups (one at least)."""
    clip_low: float = 0.2
    """A token's probability ratio is not pushed below 1 - clip_low …"""
    clip_high: float = 0.28
    """… nor above 1 + clip_high."""
    dual_clip: float | None = None
    """A bad token whose ratio is above this (3, say) is not pushed down any harder (None: no such bound)."""
    kl_coef: float = 0.01
    """Weight of the divergence from the reference (the model at the start); 0 loads no reference."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus at the first step …"""
    final_entropy_coef: float = 0.001
    """… and at the last, linear between."""
    dynamic_sampling: Literal["skip", "refill", "off"] = "skip"
    """Groups whose rewards are all equal: skip drops them, refill samples further problems instead, off keeps them."""
    max_resample_rounds: int = 3
    """Most extra rollouts per step for refill; what they leave unfilled makes the step smaller."""
    evaluate_problems: int = 100
    """Validation problems looked at every `evaluate_every` steps."""
    evaluate_samples: int = 4
    """Completions of each, at temperature 0.7."""
    keep: Keep = "best"
    """Which weights the stage leaves: the best on validation (those it began with count by the lower end of their 95%
    interval), the last, or both: the best, and the last beside them in a folder `grpo-last`."""
    stop_below: float = 0.2
    """A collapse: when the well-formed share of a step's completions, once above this, falls below it, the run stops
    and leaves the best weights on validation (0: never)."""
    detailed_rollouts: int = 8
    """Completions per step whose tokens are logged one by one, with log-probability, entropy and clip flag."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2:
            raise UserError(
                f"is {self.group_size}; a group needs at least 2 completions to compare.", field="group_size"
            )
        if self.temperature == 0:
            raise UserError("is 0; reinforcement learning must sample, use e.g. 1.", field="temperature")
        check_temperature(self.temperature)
        if not self.rewards or not any(self.rewards.values()):
            raise UserError('is empty, nothing would be learned; use e.g. {"accuracy" = 1.0}.', field="rewards")
        counts = ("problems_per_step", "updates_per_rollout", "evaluate_problems", "evaluate_samples", "max_new_tokens")
        at_least(1, self, *counts)
        at_least(0, self, "clip_high", "kl_coef", "entropy_coef", "final_entropy_coef", "overlong_penalty")
        at_least(0, self, "max_resample_rounds", "detailed_rollouts")
        if self.max_resample_rounds > MOST_ROUNDS:
            raise UserError(
                f"is {self.max_resample_rounds}; it can be {MOST_ROUNDS} at most: where so many rollouts carry no "
                "signal, another reward or other problems are needed.",
                field="max_resample_rounds",
            )
        if not 0 <= self.clip_low < 1:
            raise UserError(f"is {self.clip_low}; it must be in [0, 1).", field="clip_low")
        if not 0 < self.uncertain_share <= 1:
            raise UserError(f"is {self.uncertain_share}; a share of the tokens is in (0, 1].", field="uncertain_share")
        if self.dual_clip is not None and self.objective in ("cispo", "sapo"):
            raise UserError(f'has no meaning for objective = "{self.objective}"; leave it out.', field="dual_clip")
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise UserError(f"is {self.dual_clip}; it must be above 1 + clip_high.", field="dual_clip")
        if not 0 < self.overlong_share <= 1:
            raise UserError(
                f"is {self.overlong_share}; it is a share of max_new_tokens, in (0, 1].", field="overlong_share"
            )
        if not 0 <= self.stop_below < 1:
            raise UserError(f"is {self.stop_below}; it is a share of the completions, in [0, 1).", field="stop_below")

    def entropy_coef_at(self, step: int) -> float:
        done = step / max(1, self.steps - 1)
        return self.entropy_coef + (self.final_entropy_coef - self.entropy_coef) * done
