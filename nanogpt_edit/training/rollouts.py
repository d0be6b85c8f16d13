"""What the policy is asked and what its answers are worth: groups of completions, sampled, rewarded, described.

G completions of each of P problems at the trainer's temperature, without top-k and top-p. With `refill` (DAPO's dynamic
sampling, Yu et al. 2025, §3.2) further problems are asked while fewer than P groups carry signal; the rounds are
limited, and a step that stays short of groups is a smaller step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanogpt_edit.common import distributed
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.data.batch import rows_of_step
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import prompt_ids
from nanogpt_edit.engine.engine import Completion, Engine
from nanogpt_edit.engine.sampling import Sampling
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.losses import has_signal
from nanogpt_edit.training.rewards import score


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
    takes_part: tuple[bool, ...]
    """Which completions the loss sees; the others only count in the group's mean."""

    @property
    def has_signal(self) -> bool:
        return bool(has_signal(self.total[None])[0]) and any(self.takes_part)

    @property
    def tokens(self) -> int:
        """Tokens that were written."""
        return sum(len(completion.token_ids) for completion in self.completions)


def rollouts(
    engine: Engine, problems: Sequence[Problem], config: GRPOConfig, *, seed: int, step: int
) -> list[RolloutGroup]:
    """The groups of one step; with `refill`, further rounds until enough of them carry signal."""
    rounds = 1 + (config.max_resample_rounds if config.dynamic_sampling == "refill" else 0)
    groups: list[RolloutGroup] = []
    for number in range(rounds):
        # Every step owns `rounds` draws, used or not, so that what a step samples does not depend on the ones before.
        draw = step * rounds + number
        chosen = rows_of_step(len(problems), rows=config.problems_per_step, seed=seed, step=draw)
        asked = [problems[i] for i in chosen]
        groups += sample_groups(engine, asked, config, seed=seed, step=draw, first=len(groups))
        if sum(group.has_signal for group in groups) >= config.problems_per_step:
            break
    return groups


def sample_groups(
    engine: Engine, problems: Sequence[Problem], config: GRPOConfig, *, seed: int, step: int, first: int = 0
) -> list[RolloutGroup]:
    """`group_size` completions of each problem, with their rewards; groups are numbered from `first`.

    The problems are dealt out to the processes; each gets all groups, the same for any number of processes.
    Raises UserError when a reward fails, naming it, the problem and the completion.
    """

    def work(places: Sequence[int]) -> list[RolloutGroup]:
        return sample_places(engine, problems, places, config, seed=seed, step=step, first=first)

    return distributed.map_over_ranks(range(len(problems)), work)


def sample_places(
    engine: Engine,
    problems: Sequence[Problem],
    places: Sequence[int],
    config: GRPOConfig,
    *,
    seed: int,
    step: int,
    first: int,
) -> list[RolloutGroup]:
    """`sample_groups` of the problems at some `places`, in this process."""
    tokenizer = tokenizer_of(engine.model)
    limit = config.max_new_tokens or engine.model.config.block_size
    prompts = [prompt_ids(problems[place], tokenizer) for place in places]
    sampling = Sampling(
        temperature=config.temperature,
        top_k=None,
        max_new_tokens=limit,
        seed=int(np.random.default_rng([seed, step]).integers(2**62)),
    )
    with progress("sampling", len(prompts) * config.group_size, "completions", brief=True) as bar:
        stream = engine.stream(
            prompts,
            n=config.group_size,
            sampling=sampling,
            stop_ids=tokenizer.stop_ids,
            prompt_keys=places,
        )
        completions = sorted(bar.counted(stream), key=lambda each: (each.prompt_index, each.sample_index))
    groups = []
    for i, place in enumerate(places):
        problem = problems[place]
        own = completions[i * config.group_size : (i + 1) * config.group_size]
        texts = [tokenizer.decode(completion.token_ids) for completion in own]
        rewards = score({"accuracy": 0.0, "format": 0.0} | config.rewards, problem, texts)
        weights = dict(config.rewards)
        if config.overlong_penalty:
            rewards["overlong"] = [overlong(len(c.token_ids), limit=limit, share=config.overlong_share) for c in own]
            weights["overlong"] = config.overlong_penalty
        total = sum(torch.tensor(rewards[name]) * weight for name, weight in weights.items())
        assert isinstance(total, Tensor)
        groups.append(
            RolloutGroup(
                number=first + place,
                problem=problem,
                prompt=tuple(prompts[i]),
                completions=tuple(own),
                rewards={name: tuple(values) for name, values in rewards.items()},
                total=total,
                takes_part=tuple(not (config.mask_truncated and c.finish_reason == "length") for c in own),
            )
        )
    return groups


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


def why_stalled(metrics: Mapping[str, float]) -> str | None:
    """In words, why a step had nothing to learn from; None when it had."""
    if metrics["truncated"] == 1:
        return "every completion was cut at its length limit; raise grpo.max_new_tokens."
    if metrics["groups_dropped"] < 1:
        return None
    if metrics["well_formed"] == 0:
        return (
            "no completion is well-formed (<think>…</think><answer>…</answer>), so no answer earns anything; "
            "teach the format first, by SFT."
        )
    return (
        f"in every group all rewards are equal (mean {metrics['reward']:.2f}), so there is nothing to learn from; the "
        f"problems are too easy or too hard for this model."
    )
