"""Running only the end of each row: what stands before it is clean in every run, so its keys and values are reused.

The values' optimisation and causal tracing change a row from some token on; by causality nothing before that token
changes. `Recorder` keeps the keys and values of one clean run; `FrozenPrefix` gives them to later runs of the suffixes,
without writing to them, so that gradients flow through the suffix alone. `Abreast` does so for several groups of rows,
of other lengths, in one run.

Shapes: B rows, P longest prefix, Q longest suffix, M tokens read of a row, K heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.model.block import causal_mask
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache


class FrozenPrefix(KVCache):
    """Recorded keys and values (B, 2 · layers, K, P, E) before the new ones; nothing is written."""

    def __init__(self, recorded: Tensor, *, first_layer: int) -> None:
        self.recorded, self.first_layer, self.length = recorded, first_layer, recorded.shape[3]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        at = 2 * (layer - self.first_layer)
        return torch.cat((self.recorded[:, at], keys), dim=2), torch.cat((self.recorded[:, at + 1], values), dim=2)


@dataclass(frozen=True)
class Ends:
    """Rows that end alike: what attention finds before them, and which of their tokens are read in the end."""

    before: KVCache
    positions: Tensor
    """(B, Q)"""
    mask: Tensor
    """(B, 1, Q, P + Q), see `suffix_mask`."""
    columns: Tensor | None = None
    """(B, M) offsets into the suffix (None: all)."""


class Abreast(KVCache):
    """Groups of rows behind one another as one long row, so that all products but attention's are large ones."""

    def __init__(self, groups: Sequence[Ends]) -> None:
        self.groups, self.length = groups, 0

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """q (1, H, all groups' tokens, E), keys and values (1, K, all groups' tokens, E) -> as q."""
        parts = [each.split([group.positions.numel() for group in self.groups], dim=2) for each in (q, keys, values)]
        seen: list[Tensor] = []
        for group, *mine in zip(self.groups, *parts, strict=True):
            rows = [each[0].unflatten(1, group.positions.shape).transpose(0, 1) for each in mine]  # (B, H or K, Q, E)
            y = group.before.attend(layer, *rows, group.mask)
            seen.append(y.transpose(1, 2).flatten(0, 1))
        return torch.cat(seen).transpose(0, 1)[None]


def run_abreast(
    model: GPT, x: Sequence[Tensor], groups: Sequence[Ends], *, start: int = 0, stop: int | None = None
) -> list[Tensor]:
    """Blocks `start` up to `stop` on groups of rows, (B, Q, D) each -> (B, Q, D), or (B, M, D) where columns are read
    (of all groups or of none)."""
    if not groups:
        return []
    shapes = [(group.positions if group.columns is None else group.columns).shape for group in groups]
    states = model.run_blocks(
        torch.cat([each.flatten(0, 1) for each in x])[None],
        start=start,
        stop=stop,
        cache=Abreast(groups),
        position_ids=torch.cat([group.positions.flatten() for group in groups])[None],
        columns=_columns(groups),
    )[0].split([shape.numel() for shape in shapes])
    return [each.unflatten(0, shape) for each, shape in zip(states, shapes, strict=True)]


def _columns(groups: Sequence[Ends]) -> Tensor | None:
    """(1, tokens read) counted through all groups."""
    found, first = [], 0
    for group in groups:
        rows, length = group.positions.shape
        if group.columns is not None:
            firsts = first + length * torch.arange(rows, device=group.columns.device)
            found.append((firsts[:, None] + group.columns).flatten())
        first += rows * length
    return torch.cat(found)[None] if found else None


class Recorder(KVCache):
    """A cache that only remembers the first `columns` keys and values of every layer that ran, those `before` too."""

    def __init__(self, *, columns: int, before: FrozenPrefix | None = None) -> None:
        self.columns, self.before, self.length = columns, before, 0 if before is None else before.length
        self.pairs: list[Tensor] = []

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.before is not None:
            keys, values = self.before.extend(layer, keys, values)
        self.pairs += [keys[:, :, : self.columns].clone(), values[:, :, : self.columns].clone()]
        return keys, values

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
