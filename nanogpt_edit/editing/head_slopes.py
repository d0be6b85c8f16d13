"""Losses at the head together with their slopes, so that no graph has to hold numbers of the vocabulary's size.

Of some final states s (M, D) and the head's matrix W (V, D):

    NLL = −log p[wanted]            slope (p − onehot(wanted)) W
    KL = Σ p (log p − log q)        slope (p · (log p − log q − KL)) W

where p = softmax(W s). p W is attention with W as keys and values, so it is taken as flash attention takes it (Dao et
al. 2022): a block of the vocabulary at a time, while its logits are in the cache, scaled anew when a higher one comes.

Shapes: M states, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

VOCABULARY_BLOCK = 2048  # rows of W looked at together; 1024 to 4096 are equally fast
CHUNK_NUMBERS = 2**23  # logits made at once where all of a state's are needed; bounds memory alone


@torch.no_grad()
def nll_and_slope(states: Tensor, head: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Nats (M,) of the tokens `wanted` (M,), and the slope (M, D) at `states` (M, D); float32."""
    top = states.new_full((len(states), 1), -torch.inf, dtype=torch.float32)  # the highest logit so far
    total, mean = torch.zeros_like(top), torch.zeros_like(states, dtype=torch.float32)  # Σ exp(logit − top); · W
    for block in head.split(VOCABULARY_BLOCK):
        logits = (states @ block.T).float()  # (M, block)
        before, top = top, torch.maximum(top, logits.amax(-1, keepdim=True))
        weights, fade = logits.sub_(top).exp_(), (before - top).exp_()
        total = total * fade + weights.sum(-1, keepdim=True)
        mean = mean.mul_(fade).add_(weights.to(head.dtype) @ block)
    own = head[wanted].float()
    nll = (top + total.log())[:, 0] - (states.float() * own).sum(-1)
    return nll, mean.div_(total).sub_(own)


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


@torch.no_grad()
def nll_only(states: Tensor, head: Tensor, wanted: Tensor) -> Tensor:
    """As `nll_and_slope`, without the slope."""
    nll: list[Tensor] = []
    for part in _parts(states, head):
        nll.append(F.cross_entropy((states[part] @ head.T).float(), wanted[part], reduction="none"))
    return torch.cat(nll)


@torch.no_grad()
def kl_only(states: Tensor, head: Tensor, before: Tensor) -> Tensor:
    """As `kl_and_slope`, without the slope."""
    kl: list[Tensor] = []
    for part in _parts(states, head):
        logprobs = (states[part] @ head.T).float().log_softmax(-1)
        kl.append((logprobs.exp() * (logprobs - before[part])).sum(-1))
    return torch.cat(kl)


def _parts(states: Tensor, head: Tensor) -> list[slice]:
    size = max(1, CHUNK_NUMBERS // len(head))
    return [slice(first, first + size) for first in range(0, len(states), size)]
