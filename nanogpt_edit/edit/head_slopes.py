"""Losses at the head together with their slopes, so that no graph has to hold numbers of the vocabulary's size.

Of some final states s (M, D) and the head's matrix W (V, D), a few rows at a time:

    NLL = −log p[wanted]            slope (p − onehot(wanted)) W
    KL = Σ p (log p − log q)        slope (p · (log p − log q − KL)) W

where p = softmax(W s). The logits turn into probabilities, and these into slopes, in place.

Shapes: M states, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_NUMBERS = 2**23  # logits made at once; bounds memory, does not change the result


@torch.no_grad()
def nll_and_slope(states: Tensor, head: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Nats (M,) of the tokens `wanted` (M,), and the slope (M, D) at `states` (M, D); float32."""
    nll, slope = states.new_empty(len(states), dtype=torch.float32), torch.empty_like(states, dtype=torch.float32)
    for part in _parts(states, head):
        logits = (states[part] @ head.T).float()  # (m, V)
        own = logits.gather(-1, wanted[part, None])
        top = logits.amax(-1, keepdim=True)
        weights = logits.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        nll[part] = (top + total.log() - own)[:, 0]
        slope[part] = (weights.to(head.dtype) @ head).float() / total - head[wanted[part]].float()
    return nll, slope


@torch.no_grad()
def kl_and_slope(states: Tensor, head: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """KL(now ‖ before) (M,) in nats against log-probabilities `before` (M, V), and the slope (M, D); float32."""
    kl, slope = states.new_empty(len(states), dtype=torch.float32), torch.empty_like(states, dtype=torch.float32)
    for part in _parts(states, head):
        logprobs = (states[part] @ head.T).float().log_softmax(-1)  # (m, V)
        apart = logprobs - before[part]
        p = logprobs.exp_()
        kl[part] = (p * apart).sum(-1)
        slope[part] = (apart.sub_(kl[part, None]).mul_(p).to(head.dtype) @ head).float()
    return kl, slope


def _parts(states: Tensor, head: Tensor) -> list[slice]:
    size = max(1, CHUNK_NUMBERS // len(head))
    return [slice(first, first + size) for first in range(0, len(states), size)]
