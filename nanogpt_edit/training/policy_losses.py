"""What the tokens of a completion are worth to the policy: the objectives that GRPO can climb, as pure functions.

With ρ = exp(logprob − old_logprob) and the advantage A, per token and to be maximised:

    clip   min(ρ A, clip(ρ, 1 − low, 1 + high) A)          PPO (Schulman et al. 2017, eq. 7), clip-higher of DAPO
    gspo   the same of the whole completion's ρ            GSPO (Zheng et al. 2025, eqs. 5, 7)
    cispo  sg(clip(ρ, 1 − low, 1 + high)) A logprob        CISPO (MiniMax-M1, 2025, eqs. 4, 5)
    sapo   4/τ · σ(τ (ρ − 1)) A                            SAPO (Gao et al. 2025)

All have the same gradient, A ∇logprob, where ρ is 1; they part where the policy has left the one that sampled. "clip"
and "gspo" drop a token there, "cispo" keeps every token and bounds its weight, "sapo" lets it fade.

Shapes: N completion tokens (flat).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GOOD_TAU, BAD_TAU = 1.0, 1.05  # the authors' choice: bad tokens fade sooner


@dataclass(frozen=True)
class Worth:
    """What is maximised, and which tokens are held back; all (N,)."""

    worth: Tensor
    """With gradient."""
    low: Tensor
    """bool: held by 1 − low."""
    high: Tensor
    """bool: held by 1 + high."""


def clipped(log_ratio: Tensor, advantages: Tensor, *, low: float, high: float, dual: float | None = None) -> Worth:
    """PPO's pessimistic bound. With `dual` c a token of A < 0 costs at most −c A (Ye et al. 2020, eq. 3)."""
    ratio = log_ratio.exp()
    worth = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    if dual is not None:
        worth = torch.where(advantages < 0, torch.maximum(worth, dual * advantages), worth)
    with torch.no_grad():
        fallen, risen = (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)
    return Worth(worth, fallen, risen)


def of_completions(log_ratio: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mean log ρ of each completion at each of its tokens (N,): GSPO's ratio, by its length's root (eq. 7).

    `lengths` are the completions' tokens; they sum to N.
    """
    parts = log_ratio.split(list(lengths))
    return torch.cat([part.mean().expand(len(part)) if len(part) else part for part in parts])


def bounded_weight(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, *, low: float, high: float) -> Worth:
    """CISPO: REINFORCE with a bounded importance weight that has no gradient of its own."""
    ratio = log_ratio.detach().exp()
    worth = ratio.clamp(1 - low, 1 + high) * advantages * logprobs
    moves = advantages != 0
    return Worth(worth, (ratio < 1 - low) & moves, (ratio > 1 + high) & moves)


def soft_gate(log_ratio: Tensor, advantages: Tensor) -> Worth:
    """SAPO: the gradient falls smoothly on both sides of ρ = 1; no token is held back altogether."""
    tau = torch.full_like(advantages, BAD_TAU).masked_fill(advantages > 0, GOOD_TAU)
    worth = 4 / tau * torch.sigmoid(tau * (log_ratio.exp() - 1)) * advantages
    none = torch.zeros_like(advantages, dtype=torch.bool)
    return Worth(worth, none, none)


def most_uncertain(entropy: Tensor, counts: Sequence[int], share: float) -> Tensor:
    """(N,) bool: of each run of `counts` tokens the `share` with the highest entropy, equal ones included.

    The tokens at which reasoning forks (Wang et al. 2025, "Beyond the 80/20 rule"). The authors rank a whole batch;
    here it is each group, so that how a step is split into micro-batches never changes it.
    """
    chosen: list[Tensor] = []
    for part in entropy.detach().split(list(counts)):
        kept = max(1, round(share * len(part))) if len(part) else 0
        chosen.append(part >= part.topk(kept).values[-1] if kept else part.bool())
    return torch.cat(chosen)
