"""Running only the end of each row: what stands before it is clean in every run, so its keys and values are reused.

The values' optimisation and causal tracing change a row from some token on; by causality nothing before that token
changes. `Recorder` keeps the keys and values of one clean run; `FrozenPrefix` gives them to later runs of the suffixes,
without writing to them, so that gradients flow through the suffix alone.

Shapes: B rows, P longest prefix, Q longest suffix, K heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanogpt_edit.model.attention import attention, causal_mask
from nanogpt_edit.model.config import GPTConfig


class FrozenPrefix:
    """Recorded keys and values (B, 2 · layers, K, P, E) before the new ones; nothing is written."""

    def __init__(self, recorded: Tensor, *, first_layer: int) -> None:
        self.recorded, self.first_layer, self.length = recorded, first_layer, recorded.shape[3]

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return attention(q, *self.extend(layer, keys, values), mask=mask)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The new tokens' keys and values with the recorded ones before them."""
        at = 2 * (layer - self.first_layer)
        return torch.cat((self.recorded[:, at], keys), dim=2), torch.cat((self.recorded[:, at + 1], values), dim=2)


class Recorder:
    """Plain attention that remembers the first `columns` keys and values of every layer that ran."""

    def __init__(self, *, columns: int) -> None:
        self.columns, self.length = columns, 0
        self.pairs: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        self.pairs += [keys[:, :, : self.columns].clone(), values[:, :, : self.columns].clone()]
        return attention(q, keys, values, mask=mask)

    def stacked(self, *, like: Tensor, config: GPTConfig) -> Tensor:
        """(B, 2 · layers run, K, P, E); `like` (B, …) gives rows, device and dtype when no layer ran."""
        if self.pairs:
            return torch.stack(self.pairs, dim=1)
        return like.new_zeros(len(like), 0, config.kv_heads, self.columns, config.head_size)


def suffix_mask(starts: Tensor, *, prefix: int, length: int) -> Tensor:
    """(B, 1, Q, P + Q) bool: suffix tokens see what stands before their row's start (B,), and each other causally."""
    before = torch.arange(prefix, device=starts.device) < starts[:, None]  # (B, P)
    look_back = before[:, None, None].expand(-1, 1, length, -1)
    look_here = causal_mask(length, length, device=starts.device).expand(len(starts), 1, -1, -1)
    return torch.cat((look_back, look_here), dim=-1)
