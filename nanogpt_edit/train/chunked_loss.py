"""Cross-entropy straight from the states the head reads, without ever holding all logits.

With V = 50,304 entries the logits of a few thousand target tokens, their softmax and its gradient are larger than the
model. Here a chunk of them is made, its loss and both its gradients are taken, and it is forgotten: softmax(z) − onehot
is known as soon as z is, so the backward pass only scales what the forward pass has summed (as in Liger Kernel, Hsu et
al. 2024). Same arithmetic, a third of the memory traffic; sums differ from the plain loss by rounding.

Shapes: N target tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_edit.train.losses import cross_entropy_sum

CHUNK_NUMBERS = 2**23  # logits held at once: 32 MiB in float32


def head_cross_entropy_sum(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log p(target) in nats under softmax(states · weightᵀ): states (N, D), weight (V, D), targets (N,)."""
    rows = max(1, CHUNK_NUMBERS // weight.shape[0])
    if len(states) <= rows:
        return cross_entropy_sum(F.linear(states, weight), targets)
    if not torch.is_grad_enabled():
        parts = zip(states.split(rows), targets.split(rows), strict=True)
        return torch.stack([cross_entropy_sum(F.linear(part, weight), wanted) for part, wanted in parts]).sum()
    loss: Tensor = _HeadCrossEntropy.apply(states, weight, targets, rows)  # type: ignore[no-untyped-call]
    return loss


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        to_states, to_weight = torch.empty_like(states), torch.zeros_like(weight)
        total = states.new_zeros((), dtype=torch.float32)
        for begin in range(0, len(states), rows):
            at = slice(begin, begin + rows)
            wanted = targets[at, None]
            logits = F.linear(states[at], weight).float()  # (rows, V)
            log_total = logits.logsumexp(dim=-1, keepdim=True)
            total += (log_total - logits.gather(1, wanted)).sum()
            slope = logits.sub_(log_total).exp_()  # softmax, then minus onehot: the gradient at the logits
            slope.scatter_add_(1, wanted, torch.full_like(slope[:, :1], -1.0))
            slope = slope.to(states.dtype)
            to_states[at] = slope @ weight
            to_weight += slope.T @ states[at]
        ctx.save_for_backward(to_states, to_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_states, to_weight = ctx.saved_tensors
        return to_states * slopes[0].to(to_states.dtype), to_weight * slopes[0].to(to_weight.dtype), None, None
