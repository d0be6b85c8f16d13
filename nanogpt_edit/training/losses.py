"""What training minimises: tensors in, (loss, metrics) out; nothing here knows a model, an optimizer or a file.

All sums run over the tokens given and are divided by a count the caller passes, so that splitting a step into
micro-batches never changes its gradient.

Shapes: N target tokens (flat), V vocabulary, P problems, G completions per problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.training.grpo_config import Advantage, Objective
from nanogpt_edit.training.policy_losses import Worth, bounded_weight, clipped, of_completions, soft_gate

SIGNAL = 1e-6  # rewards of a group that differ by less carry no signal


def group_advantages(rewards: Tensor, *, advantage: Advantage = "zscore") -> Tensor:
    """How much better each completion is than its group: (P, G) -> (P, G).

    `r - mean(r)`, divided by `std(r) + 1e-4` for "zscore" (GRPO, Shao et al. 2024, eq. 3 and text), not divided for
    "mean" (Dr. GRPO, Liu et al. 2025), divided by the spread of all P · G rewards for "batch" (Lite PPO, Liu et al.
    2025). The standard deviation is that of the sample (divisor G - 1).
    """
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    if advantage == "mean":
        return centred
    if advantage == "batch":
        return centred / (rewards.std() + 1e-4)
    return centred / (rewards.std(dim=-1, keepdim=True) + 1e-4)


def has_signal(rewards: Tensor) -> Tensor:
    """(P, G) -> (P,) bool: do the rewards of the group differ? (DAPO's dynamic sampling, Yu et al. 2025, §3.2)"""
    return rewards.amax(dim=-1) - rewards.amin(dim=-1) >= SIGNAL


@dataclass(frozen=True)
class GRPOTerms:
    """The terms of the GRPO objective over some tokens: sums, so that micro-batches add up."""

    loss: Tensor
    """Scalar with gradient: what is minimised."""
    policy: float
    kl: float
    entropy: float
    clipped_low: float
    """Tokens held back by 1 - clip_low ("clip": the probability of a bad token has already fallen enough)."""
    clipped_high: float
    """Tokens held back by 1 + clip_high ("clip": the probability of a good token has already risen enough)."""
    largest_log_ratio: float
    """max |logprob - old_logprob|."""
    weight: float
    """Sum of the weights: 1 over a whole update where the loss is a mean."""
    clipped: Tensor
    """(N,) int8: -1 held back by 1 - clip_low, 1 by 1 + clip_high, 0 free."""


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    entropy: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    objective: Objective = "clip",
    lengths: Sequence[int] = (),
    uncertain: Tensor | None = None,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    kl_coef: float,
    entropy_coef: float,
) -> GRPOTerms:
    """Policy objective, KL to the reference and entropy bonus; all inputs (N,), one entry per completion token.

    Per token

        -worth + kl_coef · k3 - entropy_coef · H

    with the worth of the `objective` (see `policy_losses`; "clip" is PPO's with DAPO's clip-higher, eq. 10) and
    k3 = exp(d) - d - 1, d = ref - logprob (Schulman 2020). `weights` multiply each token: 1 / tokens-of-the-step is the
    token-level mean. "gspo" needs the completions' `lengths`. Only tokens where `uncertain` (N,) is true have a policy
    term (None: all). `ref_logprobs` None leaves the KL term out. The metrics are weighted sums too.
    """
    log_ratio = logprobs - old_logprobs
    found = _worth(objective, logprobs, log_ratio, advantages, lengths, low=clip_low, high=clip_high, dual=dual_clip)
    worth = found.worth if uncertain is None else found.worth * uncertain
    policy = -(worth * weights).sum()
    kl = logprobs.new_zeros(())
    if ref_logprobs is not None:
        drift = ref_logprobs - logprobs
        kl = ((drift.exp() - drift - 1) * weights).sum()
    mean_entropy = (entropy * weights).sum()
    gap = log_ratio.detach().abs().max().item() if len(log_ratio) else 0.0
    return GRPOTerms(
        loss=policy + kl_coef * kl - entropy_coef * mean_entropy,
        policy=policy.item(),
        kl=kl.item(),
        entropy=mean_entropy.item(),
        clipped_low=(found.low * weights).sum().item(),
        clipped_high=(found.high * weights).sum().item(),
        largest_log_ratio=gap,
        weight=weights.sum().item(),
        clipped=found.high.to(torch.int8) - found.low.to(torch.int8),
    )


def _worth(
    objective: Objective,
    logprobs: Tensor,
    log_ratio: Tensor,
    advantages: Tensor,
    lengths: Sequence[int],
    *,
    low: float,
    high: float,
    dual: float | None,
) -> Worth:
    if objective == "cispo":
        return bounded_weight(logprobs, log_ratio, advantages, low=low, high=high)
    if objective == "sapo":
        return soft_gate(log_ratio, advantages)
    ratio = of_completions(log_ratio, lengths) if objective == "gspo" else log_ratio
    return clipped(ratio, advantages, low=low, high=high, dual=dual)
