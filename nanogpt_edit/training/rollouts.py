"""What the policy is asked and what its answers are worth: groups of completions, sampled, rewarded, described.

G completions of each of P problems at the trainer's temperature, without top-k and top-p. With `refill` (DAPO's dynamic
sampling, Yu et al. 2025, §3.2) further problems are asked while fewer than P groups carry signal; the rounds are
limited, and a step that stays short of groups is a smaller step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nanogpt_edit.common import distributed
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.data.batch import rows_of_step
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import prompt_ids
from nanogpt_edit.engine.completion import Completion
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.losses import group_advantages, has_signal
from nanogpt_edit.training.rewards import Reward, find_rewards, score


@dataclass(frozen=True)
class RolloutGroup:
    """One problem, its G completions and what they were worth."""

    number: int
    """Its place among the groups of the step."""
    problem: Problem
    prompt: tuple[int, ...]
    completions: tuple[Completion, ...]
    rewards: Mapping[str, tuple[float, ...]]
    """By reward name, unweighted, one number per completion; accuracy and format are always among them."""
    total: Tensor
    """(G,) weighted sum of the rewards."""
    advantages: Tensor
    """(G,) how much better each completion is than its group (see `group_advantages`)."""
    takes_part: tuple[bool, ...]
    """Which completions the loss sees; the others only count in the group's mean."""

    @property
    def has_signal(self) -> bool:
        return bool(has_signal(self.total[None])[0]) and any(self.takes_part)

    @property
    def tokens(self) -> int:
        """Tokens that were written."""
        return sum(len(completion.token_ids) for completion in self.completions)


@dataclass(frozen=True)
class RolloutSampler:
    """Asks the policy, and scores its answers."""

    engine: Engine
    config: GRPOConfig
    rewards: Mapping[str, Reward]
    seed: int

    @classmethod
    def of(cls, engine: Engine, config: GRPOConfig, *, seed: int) -> RolloutSampler:
        """Raises UserError for a reward that cannot be found."""
        return cls(engine, config, find_rewards(("accuracy", "format", *config.rewards)), seed)

    @property
    def max_new_tokens(self) -> int:
        return self.config.max_new_tokens or self.engine.model.config.block_size

    def rollout(self, problems: Sequence[Problem], *, step: int) -> list[RolloutGroup]:
        """The groups of one step; with `refill`, further rounds until enough of them carry signal."""
        rounds = 1 + (self.config.max_resample_rounds if self.config.dynamic_sampling == "refill" else 0)
        wanted = self.config.problems_per_step
        groups: list[RolloutGroup] = []
        for number in range(rounds):
            # Every step owns `rounds` draws, used or not: what a step samples does not depend on the ones before.
            draw = step * rounds + number
            chosen = rows_of_step(len(problems), rows=wanted, seed=self.seed, step=draw)
            groups += self.sample_groups([problems[i] for i in chosen], draw=draw, first=len(groups))
            if sum(group.has_signal for group in groups) >= wanted:
                break
        return groups

    def sample_groups(self, problems: Sequence[Problem], *, draw: int, first: int = 0) -> list[RolloutGroup]:
        """`group_size` completions of each problem, with their rewards; groups are numbered from `first`.

        The problems are dealt out to the processes; each gets all groups, the same for any number of processes.
        Raises UserError when a reward fails, naming it, the problem and the completion.
        """

        def of_this_process(places: Sequence[int]) -> list[RolloutGroup]:
            prompts = [prompt_ids(problems[place], tokenizer_of(self.engine.model)) for place in places]
            return [
                self._group(first + place, problems[place], prompt, completions)
                for place, prompt, completions in zip(
                    places, prompts, self._completions(prompts, places, draw), strict=True
                )
            ]

        groups = distributed.map_over_ranks(range(len(problems)), of_this_process)
        return compared(groups) if self.config.advantage == "batch" else groups

    def _completions(
        self, prompts: Sequence[Sequence[int]], places: Sequence[int], draw: int
    ) -> list[tuple[Completion, ...]]:
        """G completions of each prompt; what is sampled depends on the seed, the draw and the prompt's place in it."""
        size = self.config.group_size
        sampling = Sampling(
            temperature=self.config.temperature,
            top_k=None,
            max_new_tokens=self.max_new_tokens,
            seed=int(np.random.default_rng([self.seed, draw]).integers(2**62)),
        )
        stop_ids = tokenizer_of(self.engine.model).stop_ids
        with progress("sampling", len(prompts) * size, "completions", brief=True) as bar:
            stream = self.engine.stream(prompts, n=size, sampling=sampling, stop_ids=stop_ids, prompt_keys=places)
            completions = sorted(bar.counted(stream), key=lambda each: (each.prompt_index, each.sample_index))
        return [tuple(completions[i : i + size]) for i in range(0, len(completions), size)]

    def _group(
        self, number: int, problem: Problem, prompt: Sequence[int], completions: tuple[Completion, ...]
    ) -> RolloutGroup:
        """The completions with their rewards, and the advantage of each over its group."""
        config, tokenizer = self.config, tokenizer_of(self.engine.model)
        rewards = score(self.rewards, problem, [tokenizer.decode(each.token_ids) for each in completions])
        weights = dict(config.rewards)
        if config.overlong_penalty:
            lengths = [len(each.token_ids) for each in completions]
            rewards["overlong"] = [overlong(n, limit=self.max_new_tokens, share=config.overlong_share) for n in lengths]
            weights["overlong"] = config.overlong_penalty
        parts = (torch.tensor(rewards[name]) * weight for name, weight in weights.items())
        total = sum(parts, torch.zeros(len(completions)))
        return RolloutGroup(
            number=number,
            problem=problem,
            prompt=tuple(prompt),
            completions=completions,
            rewards={name: tuple(values) for name, values in rewards.items()},
            total=total,
            advantages=group_advantages(total[None], advantage=config.advantage)[0],
            takes_part=tuple(not (config.mask_truncated and each.finish_reason == "length") for each in completions),
        )


def compared(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """The groups with advantages in units of the spread of all their rewards, which one group alone does not know."""
    advantages = group_advantages(torch.stack([group.total for group in groups]), advantage="batch")
    return [replace(group, advantages=own) for group, own in zip(groups, advantages, strict=True)]


def with_signal(groups: Sequence[RolloutGroup], config: GRPOConfig) -> list[RolloutGroup]:
    """The groups to train on: those whose rewards differ (all of them with `off`), at most `problems_per_step`."""
    kept = [group for group in groups if group.has_signal or config.dynamic_sampling == "off"]
    return kept[: config.problems_per_step]


def overlong(tokens: int, *, limit: int, share: float) -> float:
    """DAPO's soft overlong punishment (eq. 13): 0 before the last `share` of `limit`, then down to -1."""
    buffer = share * limit
    return -min(1.0, max(0.0, (tokens - (limit - buffer)) / buffer))


def describe(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """What a rollout looked like: rewards, accuracy, lengths, share of groups without signal."""
    every = [completion for group in groups for completion in group.completions]
    lengths = np.array([len(completion.token_ids) for completion in every])
    rewards = {name: np.array([group.rewards[name] for group in groups]) for name in groups[0].rewards}  # (P, G)
    return {
        "reward": float(np.mean([group.total.mean().item() for group in groups])),
        **{f"reward_{name}": float(values.mean()) for name, values in rewards.items()},
        **{f"reward_{name}_std": float(values.std()) for name, values in rewards.items()},
        **{f"reward_{name}_signal": _share_with_signal(values) for name, values in rewards.items()},
        "accuracy": float(rewards["accuracy"].mean()),
        "well_formed": float(rewards["format"].mean()),
        "groups_dropped": float(np.mean([not group.has_signal for group in groups])),
        "mean_tokens": float(lengths.mean()),
        "max_tokens": float(lengths.max()),
        "truncated": float(np.mean([completion.finish_reason == "length" for completion in every])),
    }


def _share_with_signal(rewards: np.ndarray) -> float:
    """(P, G) -> share of the groups in which this reward differs between completions."""
    return float(has_signal(torch.from_numpy(rewards)).float().mean())
