"""The engine's cache: each running prompt's keys and values once, and each row's own tokens.

All samples of a prompt look at the same prompt keys, so these are read once per group and step instead of once per
row (Juravsky et al. 2024, "Hydragen"). A row's own tokens stand in columns of their own, the newest of every row in
the same column, so that appending is one slice write: a row that joined later simply starts in a later column. Rows
stand in the order in which they joined; a span of rows that joined at about the same time is read from its first
column on, so that young rows do not pay for old ones.

Shapes: R rows, P prompts running, G rows of the largest group, S tokens of the longest prompt, C own columns filled,
H query heads, K key/value heads, E head width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.kv_cache import KVCache

NEVER = float("-inf")
SPAN_COLUMNS = 64  # rows of a span joined at most this many steps apart


@dataclass(frozen=True)
class Span:
    """Rows `rows` of the batch; their own tokens stand in column `first` and later, without a gap if `even`."""

    rows: slice
    first: int
    even: bool


class DecodeCache(KVCache):
    """A `KVCache` of the rows' own tokens, with the prompts they continue in front."""

    def __init__(
        self,
        config: GPTConfig,
        *,
        rows: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(config, rows=rows, capacity=capacity, device=device, dtype=dtype)
        self.slots = rows
        self.clear()

    def clear(self) -> None:
        """Forget all rows and prompts."""
        layers, _, heads, _, size = self.keys.shape
        self.rows = self.length = 0
        self.prompt_keys = self.keys.new_zeros(layers, 0, heads, 0, size)
        self.prompt_values = torch.zeros_like(self.prompt_keys)
        self.prompt_indices: list[int] = []  # the caller's number of each prompt
        self.prompt_lengths = torch.zeros(0, dtype=torch.long, device=self.keys.device)  # (P,)
        self.prompt_of_row = torch.zeros(0, dtype=torch.long, device=self.keys.device)  # (R,) place among the prompts
        self.start = torch.zeros(0, dtype=torch.long, device=self.keys.device)  # (R,) first own column

    def add_prompts(self, indices: Sequence[int], prefix: KVCache, lengths: Tensor) -> None:
        """Take over prefilled prompts (right-padded in `prefix`); `lengths` (prompts,)."""
        width = max(self.prompt_keys.shape[3], prefix.capacity)
        self.prompt_keys = torch.cat([_widened(each, width) for each in (self.prompt_keys, prefix.keys)], dim=1)
        self.prompt_values = torch.cat([_widened(each, width) for each in (self.prompt_values, prefix.values)], dim=1)
        self.prompt_lengths = torch.cat((self.prompt_lengths, lengths))
        self.prompt_indices += indices

    def add_rows(self, prompt_indices: Sequence[int]) -> None:
        """One more row per entry, continuing that (already added) prompt; its first own token is the next column."""
        place = {index: place for place, index in enumerate(self.prompt_indices)}
        new = torch.tensor([place[index] for index in prompt_indices], device=self.keys.device)
        self.prompt_of_row = torch.cat((self.prompt_of_row, new))
        self.start = torch.cat((self.start, torch.full_like(new, self.length)))
        self.rows += len(new)
        self._regroup()

    def keep(self, rows: Tensor) -> None:
        """Keep only `rows` (ascending), moved to the front, and the prompts they need."""
        kept = [(span.first, rows[(rows >= span.rows.start) & (rows < span.rows.stop)]) for span in self.spans]
        for own in (*self.keys, *self.values):
            to = 0
            for first, some in kept:
                own[to : to + len(some), :, first : self.length] = own[some, :, first : self.length]
                to += len(some)
        used, self.prompt_of_row = torch.unique(self.prompt_of_row[rows], return_inverse=True)
        if len(used) < len(self.prompt_indices):
            self.prompt_lengths = self.prompt_lengths[used]
            width = int(self.prompt_lengths.max()) if len(used) else 0
            self.prompt_keys = self.prompt_keys[:, :, :, :width][:, used]
            self.prompt_values = self.prompt_values[:, :, :, :width][:, used]
            self.prompt_indices = [self.prompt_indices[place] for place in used.tolist()]
        self.start = self.start[rows]
        self.rows = len(rows)
        if self.rows:
            self._regroup()

    def forget_columns(self, columns: int) -> None:
        """Drop the first `columns` own columns of every row."""
        for own in (*self.keys, *self.values):
            for span in self.spans:
                first = max(span.first, columns)  # a row that waits to leave may have begun before
                own[span.rows, :, first - columns : self.length - columns] = own[
                    span.rows, :, first : self.length
                ].clone()
        self.length -= columns
        self.start = (self.start - columns).clamp_(min=0)
        self._find_spans()

    def positions(self) -> Tensor:
        """(R,) position of the token that is about to be added."""
        return self.prompt_lengths[self.prompt_of_row] + self.length - self.start

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """One new token per row looks at its prompt and its own tokens: q (R, H, 1, E) -> (R, H, 1, E)."""
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.attend(layer, q.to(self.keys.dtype), keys, values, mask)
        own_keys, own_values = self.extend(layer, keys, values)  # (R, K, C, E)
        rows, heads, _, size = q.shape
        q = q.reshape(rows, own_keys.shape[1], -1, size) * size**-0.5  # (R, K, H/K, E)
        shared_keys = self.prompt_keys[layer, :, :, : self._width]  # (P, K, S, E)
        shared_values = self.prompt_values[layer, :, :, : self._width]

        grouped = self._to_groups(q)  # (P, K, G·H/K, E)
        to_prompt = self._from_groups(grouped @ shared_keys.transpose(-1, -2), q)  # (R, K, H/K, S)
        looked = [
            self._look(span, bias, q[span.rows], to_prompt[span.rows], own_keys, own_values)
            for span, bias in zip(self.spans, self._biases(), strict=True)
        ]
        on_prompt, from_own = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*looked, strict=True))
        y = self._from_groups(self._to_groups(on_prompt) @ shared_values, q) + from_own
        self.advance(layer, 1)
        return y.reshape(rows, heads, 1, size)

    def _look(
        self, span: Span, bias: Tensor | None, q: Tensor, to_prompt: Tensor, own_keys: Tensor, own_values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The weights of a span's rows on their prompts, and what they read from their own tokens."""
        own = slice(span.first, None)
        to_own = q @ own_keys[span.rows, :, own].transpose(-1, -2)  # (rows of the span, K, H/K, columns of the span)
        scores = torch.cat((to_prompt, to_own), dim=-1)
        weights = (scores if bias is None else scores.add_(bias)).softmax(dim=-1)
        return weights[..., : self._width], weights[..., self._width :] @ own_values[span.rows, :, own]

    def _regroup(self) -> None:
        """Work out where each row stands in the grid of P prompts × G rows."""
        counts = torch.bincount(self.prompt_of_row, minlength=len(self.prompt_indices))
        order = torch.argsort(self.prompt_of_row, stable=True)
        first = counts.cumsum(0) - counts
        within = torch.empty_like(order)
        within[order] = torch.arange(self.rows, device=order.device) - first[self.prompt_of_row[order]]
        self._group_size = int(counts.max())
        self._cell = self.prompt_of_row * self._group_size + within  # (R,)
        cells = len(self.prompt_indices) * self._group_size
        self._row_of_cell = torch.zeros(cells, dtype=torch.long, device=order.device)
        self._row_of_cell[self._cell] = torch.arange(self.rows, device=order.device)
        # Rows in the order of their prompts, none missing: the grid is the batch itself and nothing needs to move.
        self._is_grid = cells == self.rows and bool((self._cell == torch.arange(self.rows, device=order.device)).all())
        width = int(self.prompt_lengths.max())
        hidden = torch.arange(width, device=order.device) >= self.prompt_lengths[self.prompt_of_row][:, None]
        self._prompt_bias = torch.zeros(hidden.shape, device=order.device, dtype=self.keys.dtype).masked_fill_(
            hidden, NEVER
        )
        self._width, self._hides = width, bool(hidden.any())
        self._find_spans()

    def _find_spans(self) -> None:
        """Cut the rows, oldest first, wherever one joined much later than the first of its span."""
        starts, self.spans = self.start.tolist(), list[Span]()
        begin = 0
        for row in range(1, len(starts) + 1):
            if row == len(starts) or starts[row] - starts[begin] >= SPAN_COLUMNS:
                self.spans.append(Span(slice(begin, row), starts[begin], even=starts[row - 1] == starts[begin]))
                begin = row
        self._step_biases_length = -1

    def _biases(self) -> list[Tensor | None]:
        """Per span (rows, 1, 1, S + columns): 0 where a row may look, -inf where it may not; None where all may look
        everywhere. Built once per step."""
        if self._step_biases_length != self.length:
            self._step_biases = [self._bias(span) if self._hides or not span.even else None for span in self.spans]
            self._step_biases_length = self.length
        return self._step_biases

    def _bias(self, span: Span) -> Tensor:
        column = torch.arange(span.first, self.length + 1, device=self.start.device)
        own = torch.zeros(1, device=column.device, dtype=self.keys.dtype).masked_fill(
            column < self.start[span.rows, None], NEVER
        )
        return torch.cat((self._prompt_bias[span.rows], own), dim=-1)[:, None, None]

    def _to_groups(self, x: Tensor) -> Tensor:
        """(R, K, Q, n) -> (P, K, G·Q, n): the rows of a prompt side by side (empty cells hold some other row)."""
        if not self._is_grid:
            x = x[self._row_of_cell]
        elif self._group_size == 1:
            return x
        grid = x.unflatten(0, (-1, self._group_size))  # (P, G, K, Q, n)
        return grid.transpose(1, 2).flatten(2, 3)

    def _from_groups(self, x: Tensor, like: Tensor) -> Tensor:
        """(P, K, G·Q, n) -> (R, K, Q, n)."""
        if self._is_grid and self._group_size == 1:
            return x
        rows = x.unflatten(2, (self._group_size, like.shape[2])).transpose(1, 2).flatten(0, 1)
        return rows if self._is_grid else rows[self._cell]


def _widened(cached: Tensor, width: int) -> Tensor:
    """Keys or values (L, P, K, S, E) with room for prompts of `width` tokens."""
    missing = width - cached.shape[3]
    return F.pad(cached, (0, 0, 0, missing)) if missing else cached
