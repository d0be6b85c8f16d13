"""What is made of the states at the head: logits, losses, log-probabilities and their gradients, a chunk at a time.

With V = 50,304 entries the logits of a few thousand target tokens, their softmax and its gradient are larger than the
model. For the cross-entropy a chunk of them is made, its loss and both its gradients are taken, and it is forgotten:
softmax(z) − onehot is known as soon as z is, so the backward pass only scales what the forward pass has summed (as in
Liger Kernel, Hsu et al. 2024). For log-probabilities and entropies, whose gradient depends on the loss made of them,
the logits are kept once, or made again in the backward pass where even that is too much. Same arithmetic, a third of
the memory traffic or less; sums differ from the plain loss by rounding.

Where weights stay as they are (editing), losses come with their slopes at the states s alone, without a graph:

    NLL = −log p[wanted]            slope (p − onehot(wanted)) W
    KL = Σ p (log p − log q)        slope (p · (log p − log q − KL)) W

where p = softmax(W s). p W is attention with W as keys and values, so it is taken as flash attention takes it (Dao et
al. 2022): a block of the vocabulary at a time, while its logits are in the cache, scaled anew when a higher one comes.

Shapes: N states (M where slopes are taken), D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_edit.common.device import product_dtype
from nanogpt_edit.model.linear import Packed, columns_of, is_few, rows_of, whole_rows

VOCABULARY_BLOCK = 2048  # rows of the head that are multiplied at once; 1024 to 4096 are equally fast
CHUNK_NUMBERS = 2**23  # logits held at once: 32 MiB in float32
CHUNK_NUMBERS_ON_GPU = 2**26  # 256 MiB: larger pieces, fewer launches
LINE_ON_GPU = 64  # rows of the head; its fast products want whole lines of them
KEPT_NUMBERS = 2**28  # logits kept for the backward pass: 1 GiB in float32


def head_product(states: Tensor, weight: Tensor, packed: Packed | None = None) -> Tensor:
    """states · weightᵀ: (..., D) and (V, D) -> (..., V).

    What follows reads every row's logits in one piece, so that W xᵀ is made and turned in blocks of the vocabulary.
    """
    if packed is not None and packed.is_cast:
        return packed(states)
    if not is_few(states, weight):
        return F.linear(states, weight)
    rows = rows_of(states)
    if packed is not None and rows > 1:  # as fast as W xᵀ or faster with any few: nothing needs to be turned
        return packed(states)
    columns = columns_of(states)
    product = states.new_empty(rows, len(weight))
    for block, into in zip(weight.split(VOCABULARY_BLOCK), product.split(VOCABULARY_BLOCK, dim=-1), strict=True):
        into.copy_((block @ columns)[:, :rows].t())
    return product.view(*states.shape[:-1], len(weight))


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log p(target) in nats: logits (N, V), targets (N,) -> scalar."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def head_cross_entropy_sum(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log p(target) in nats under softmax(states · weightᵀ): states (N, D), weight (V, D), targets (N,)."""
    pieces = chunks(states, weight)
    if len(pieces) <= 1:
        return cross_entropy_sum(head_product(states, weight), targets)
    if not torch.is_grad_enabled():
        return torch.stack([cross_entropy_sum(head_product(states[at], weight), targets[at]) for at in pieces]).sum()
    return _head_cross_entropy(states, weight, targets, product_dtype(states))


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        to_states, to_weight = room_for_gradients(states, weight, learned=ctx.needs_input_grad[1])
        total, head = states.new_zeros((), dtype=torch.float32), in_lines(weight.to(dtype))
        for at in chunks(states, weight):
            wanted = targets[at, None]
            slope = log_softmax_of(states[at], head, 1.0, len(weight))  # (rows, V)
            total -= slope.gather(1, wanted).sum()
            slope.exp_().scatter_add_(1, wanted, torch.full_like(slope[:, :1], -1.0))  # p − onehot, at the logits
            add_gradients(slope, states, head, at, to_states, to_weight)
        ctx.gradients = to_states, to_weight
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        gradients: tuple[Tensor, Tensor | None] = ctx.gradients
        ctx.gradients = None  # they are handed on, not copied: a second backward pass has none
        return *(None if each is None else each.mul_(slopes[0].to(each.dtype)) for each in gradients), None, None


_head_cross_entropy: Callable[..., Tensor] = _HeadCrossEntropy.apply


def head_logprobs(states: Tensor, weight: Tensor, targets: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution, in nats, under softmax(states · weightᵀ / T).

    states (N, D), weight (V, D), targets (N,) -> (N,), (N,). The entropy is exact, over the full vocabulary.
    """
    numbers = len(states) * weight.shape[0] if torch.is_grad_enabled() else KEPT_NUMBERS + 1
    return _head_logprobs(states, weight, targets, temperature, product_dtype(states), numbers <= KEPT_NUMBERS)


@torch.no_grad()
def target_logprobs(states: Tensor, weight: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """The log-probabilities of `head_logprobs` alone, without gradient: what a reference model is asked for."""
    found, head = [], in_lines(weight.to(product_dtype(states)))
    for at in chunks(states, weight):
        logits = logits_of(states[at], head, temperature, len(weight))
        found.append(-F.cross_entropy(logits, targets[at], reduction="none"))
    return torch.cat(found)


class _HeadLogprobs(torch.autograd.Function):
    """A gradient needs the softmax again, weighted by what is not known before the loss: it is kept where it is small
    and made again, chunk by chunk, where it is not."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, temperature: float, dtype: torch.dtype, keep: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropy = (torch.empty(len(states), device=states.device) for _ in range(2))
        ctx.temperature, ctx.dtype, ctx.kept = temperature, dtype, []
        head = in_lines(weight.to(dtype))
        for at in chunks(states, weight):
            every = log_softmax_of(states[at], head, temperature, len(weight))  # (rows, V)
            logprobs[at] = every.gather(1, targets[at, None]).squeeze(1)
            entropy[at] = every.exp().mul_(every).sum(dim=-1).neg_()
            if keep:
                ctx.kept.append(every)
        ctx.save_for_backward(states, weight, targets, entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, targets, entropy = ctx.saved_tensors
        to_states, to_weight = room_for_gradients(states, weight, learned=ctx.needs_input_grad[1])
        head = in_lines(weight.to(ctx.dtype))
        for at in chunks(states, weight):
            # A second backward pass finds nothing kept, and makes it again.
            every = ctx.kept.pop(0) if ctx.kept else log_softmax_of(states[at], head, ctx.temperature, len(weight))
            of_logprob, of_entropy = (slope[at, None] / ctx.temperature for slope in slopes)
            # At the logits: ∂ log p(target) = onehot − p and ∂ H = −p (log p + H).
            share = every.exp()
            slope = every.add_(entropy[at, None]).mul_(of_entropy).add_(of_logprob).mul_(share).neg_()
            slope.scatter_add_(1, targets[at, None], of_logprob)
            add_gradients(slope, states, head, at, to_states, to_weight)
        return to_states, to_weight, None, None, None, None


_head_logprobs: Callable[..., tuple[Tensor, Tensor]] = _HeadLogprobs.apply


def logits_of(states: Tensor, head: Tensor, temperature: float, size: int) -> Tensor:
    """(rows, V) float32, from products in the dtype of `head` (V', D), of whose rows the first `size` are real."""
    return head_product(whole_rows(states / temperature, head.dtype), head)[: len(states), :size].float()


def log_softmax_of(states: Tensor, head: Tensor, temperature: float, size: int) -> Tensor:
    """(rows, V) float32."""
    return logits_of(states, head, temperature, size).log_softmax(dim=-1)


def room_for_gradients(states: Tensor, weight: Tensor, *, learned: bool) -> tuple[Tensor, Tensor | None]:
    """For the gradients of the states and, where it is `learned`, of the weight, which `add_gradients` fills."""
    if not learned:
        return torch.empty_like(states), None
    return torch.empty_like(states), torch.empty_like(weight) if len(states) else torch.zeros_like(weight)


def add_gradients(
    slope: Tensor, states: Tensor, head: Tensor, at: slice, to_states: Tensor, to_weight: Tensor | None
) -> None:
    """What the gradient at the logits of rows `at`, (rows, V), is at their states and at the weight."""
    first = at.start == 0  # there is nothing yet to add to
    slope, rows = whole_rows(slope, head.dtype), len(slope)
    if len(head) > slope.shape[1]:
        slope = F.pad(slope, (0, len(head) - slope.shape[1]))
    to_states[at] = (slope @ head)[:rows].to(states.dtype)
    if to_weight is None:
        return
    if slope.dtype == to_weight.dtype and slope.shape[1] == len(to_weight):
        # no product of its own: the weight is larger than a chunk
        to_weight.addmm_(slope.T, states[at], beta=0.0 if first else 1.0)
    else:
        product = (slope.T @ whole_rows(states[at], slope.dtype))[: len(to_weight)]
        to_weight.copy_(product) if first else to_weight.add_(product)


def in_lines(weight: Tensor) -> Tensor:
    """(V, D) -> (V', D), with rows of zeros up to whole lines.

    A GPU multiplies 50,261 rows with kernels that read single numbers: a third of a GRPO update was spent in them.
    """
    missing = -len(weight) % line_of(weight.device)
    return F.pad(weight, (0, 0, 0, missing)) if missing else weight


def line_of(device: torch.device) -> int:
    """Rows of a head's matrix that belong together."""
    return 1 if device.type == "cpu" else LINE_ON_GPU


def chunks(states: Tensor, weight: Tensor) -> list[slice]:
    """Consecutive pieces of the N rows with at most CHUNK_NUMBERS logits each (more on a GPU)."""
    rows = max(1, (CHUNK_NUMBERS if weight.device.type == "cpu" else CHUNK_NUMBERS_ON_GPU) // weight.shape[0])
    return [slice(begin, begin + rows) for begin in range(0, len(states), rows)]


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
    for part in chunks(states, head):
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
    for part in chunks(states, head):
        nll.append(F.cross_entropy((states[part] @ head.T).float(), wanted[part], reduction="none"))
    return torch.cat(nll)


@torch.no_grad()
def kl_only(states: Tensor, head: Tensor, before: Tensor) -> Tensor:
    """As `kl_and_slope`, without the slope."""
    kl: list[Tensor] = []
    for part in chunks(states, head):
        logprobs = (states[part] @ head.T).float().log_softmax(-1)
        kl.append((logprobs.exp() * (logprobs - before[part])).sum(-1))
    return torch.cat(kl)
