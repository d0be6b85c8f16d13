"""Attention itself, and what may stand between it and the tokens: `AttentionView`.

Shapes: B batch, T new tokens, S all tokens seen, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class AttentionView(Protocol):
    """What the new tokens' queries see besides, or instead of, the new tokens before them.

    A `KVCache` lets them see what came before; the rows of `ragged.py` stand behind one another, and each sees its own.
    """

    @property
    def length(self) -> int:
        """How many tokens came before the new ones: the first new token's position, unless positions are given."""

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """q (B, H, T, E), keys and values (B, K, T, E) of the new tokens in one layer -> as q (see `attention`)."""


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √E) v: q (B, H, T, E), k and v (B, K, S, E) -> (B, H, T, E).

    Without a mask the T queries are the last of the S tokens and look at what is not after them.
    """
    if q.is_cuda:
        avoid_cudnn()
    elif torch.is_autocast_enabled("cpu") and q.dtype != torch.float64:
        # In bfloat16 torch's backward pass is twice as slow there. Passes without gradient do the same: GRPO compares
        # their log-probabilities.
        with torch.autocast("cpu", enabled=False):
            return attention(q.float(), k.float(), v.float(), mask=mask, dropout=dropout)
    new, seen, grouped = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    if mask is None and 1 < new < seen:
        mask = causal_mask(new, seen, device=q.device)
    if mask is not None and grouped > 1 and q.is_cuda:  # with both, torch's kernel there keeps all weights in memory
        k, v = (each.repeat_interleave(grouped, dim=1) for each in (k, v))
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None and new > 1,
        dropout_p=dropout,
        enable_gqa=q.shape[1] != k.shape[1],
    )


@cache
def avoid_cudnn() -> None:
    """Leave attention on a GPU to torch's own kernels, in the whole process.

    On Hopper torch prefers cuDNN's, which builds a plan for each new shape, a good tenth of a second forward and as
    long backward, and rows of text have another shape at every step; with a mask its gradients can be no numbers
    (pytorch/pytorch#196678).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def causal_mask(new: int, seen: int, *, device: torch.device) -> Tensor:
    """(new, seen) bool: the last `new` of `seen` tokens may look at themselves and everything before."""
    return torch.ones(new, seen, dtype=torch.bool, device=device).tril(diagonal=seen - new)
