"""Rows of different lengths go through the model as one row, without padding; attention alone sees them apart.

Nearly all of a model's arithmetic treats every token by itself, so padding is work for nothing there. Only attention
needs to know which tokens belong together: each layer spreads queries, keys and values over grids of padded rows, one
for neighbouring rows of like length, lets them look, and collects what they saw.

Shapes: B rows, T tokens of the longest, N tokens of all rows together, H heads, E head width, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nanogpt_edit.model.attention import attention
from nanogpt_edit.model.gpt import GPT

WASTED_PAIRS = 4096  # of a token and padding it is compared with, before a further grid is cheaper


class Grid:
    """Where the tokens of rows that stand one after the other belong when the rows are padded on the right."""

    def __init__(self, lengths: Tensor) -> None:
        """`lengths` (B,) may contain 0."""
        self.is_token = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]  # (B, T)
        self.cell = self.is_token.flatten().nonzero().flatten()  # (N,)
        self.token = (self.is_token.flatten().cumsum(0) - 1).clamp_(min=0)  # (B T,) padding takes any token
        self.full = len(self.cell) == self.is_token.numel()

    @property
    def rows(self) -> Tensor:
        """(N,) each token's row."""
        return self.cell // self.is_token.shape[1]

    @property
    def columns(self) -> Tensor:
        """(N,) each token's place in its row."""
        return self.cell % self.is_token.shape[1]

    def spread(self, x: Tensor) -> Tensor:
        """(1, H, N, E) -> (B, H, T, E)."""
        flat = x[0].transpose(0, 1)  # (N, H, E)
        cells = flat if self.full else flat.index_select(0, self.token)
        return cells.unflatten(0, self.is_token.shape).transpose(1, 2)

    def collect(self, x: Tensor) -> Tensor:
        """(B, H, T, E) -> (1, H, N, E)."""
        cells = x.transpose(1, 2).flatten(0, 1)  # (B T, H, E)
        return (cells if self.full else cells.index_select(0, self.cell)).transpose(0, 1)[None]


class PackedRows:
    """An `AttentionView`: tokens look at those before them in their own row; nothing is kept."""

    def __init__(self, lengths: Tensor, *, dropout: float) -> None:
        """`lengths` (B,), best in ascending order."""
        lengths = lengths[lengths > 0]
        self.grids = [Grid(part) for part in lengths.split(like_lengths(lengths.tolist()))]
        self.sizes = [len(grid.cell) for grid in self.grids]
        self.dropout, self.length = dropout, 0

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        parts = zip(self.grids, *(each.split(self.sizes, dim=2) for each in (q, keys, values)), strict=True)
        return torch.cat([self._look(grid, *own) for grid, *own in parts], dim=2)

    def _look(self, grid: Grid, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, keys, values = (grid.spread(each) for each in (q, keys, values))
        return grid.collect(attention(q, keys, values, dropout=self.dropout))


def like_lengths(lengths: Sequence[int]) -> list[int]:
    """How many neighbouring rows to pad together, again and again: (60, 61, 200) -> [2, 1]."""
    counts, wasted = [1], 0
    for row in range(1, len(lengths)):
        wasted += counts[-1] * abs(lengths[row] ** 2 - lengths[row - 1] ** 2)
        if wasted > WASTED_PAIRS:
            counts.append(0)
            wasted = 0
        counts[-1] += 1
    return counts


def packed_states(model: GPT, token_ids: Tensor, lengths: Tensor, *, wanted: Tensor | None = None) -> Tensor:
    """The states (N, D) of rows of `lengths` (B,) tokens that stand behind one another in `token_ids` (N,).

    With `wanted` (N,) bool only of those it names, which spares the last block the others.
    """
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)  # (N,)
    positions = torch.arange(len(token_ids), device=token_ids.device) - starts
    asked = None if wanted is None else wanted.nonzero().T  # (1, M)
    rows = PackedRows(lengths, dropout=model.config.dropout if model.training else 0.0)
    return model.hidden(token_ids[None], view=rows, position_ids=positions[None], columns=asked)[0]
