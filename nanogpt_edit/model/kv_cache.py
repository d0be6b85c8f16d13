"""Keys and values of the tokens already seen, allocated once.

Every row's newest token stands in the same column, so that appending a token is one slice write per layer and no
allocation. Rows whose text is shorter simply start in a later column: `start[row]` is the first column that belongs
to the row, and whoever calls the model masks what lies before it.

Memory: 2 · n_layer · rows · kv_heads · capacity · head_size numbers (`nbytes`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanogpt_edit.errors import UserError
from nanogpt_edit.model.gpt import GPTConfig


class KVCache:
    """Keys and values (n_layer, rows, kv_heads, capacity, head_size); columns 0 … length-1 are filled."""

    def __init__(
        self, config: GPTConfig, *, rows: int, capacity: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layer, rows, config.kv_heads, capacity, config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.slots = self.rows = rows
        self.capacity, self.length = capacity, 0

    @classmethod
    def like(cls, other: KVCache, *, rows: int, capacity: int) -> KVCache:
        """An empty cache for the same model, with other sizes."""
        cache = cls.__new__(cls)
        layers, _, heads, _, size = other.keys.shape
        cache.keys = other.keys.new_zeros(layers, rows, heads, capacity, size)
        cache.values = torch.zeros_like(cache.keys)
        cache.slots = cache.rows = rows
        cache.capacity, cache.length = capacity, 0
        return cache

    @staticmethod
    def row_bytes(config: GPTConfig, *, capacity: int, dtype: torch.dtype) -> int:
        """Bytes that one row of `capacity` tokens takes."""
        return 2 * config.n_layer * config.kv_heads * capacity * config.head_size * dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (rows, kv_heads, T, head_size) after the filled columns; return all columns up to and with them.

        The columns count as filled once `advance` is called, after the last layer.
        """
        end = self.length + keys.shape[2]
        if end > self.capacity:
            raise UserError(f"the key/value cache holds {self.capacity} tokens, {end} are needed; make it larger.")
        self.keys[layer, : self.rows, :, self.length : end] = keys
        self.values[layer, : self.rows, :, self.length : end] = values
        return self.keys[layer, : self.rows, :, :end], self.values[layer, : self.rows, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` new columns as filled."""
        self.length += tokens

    def keep(self, rows: Tensor) -> None:
        """Keep only `rows` (1-D, ascending), moved to the front; the space of the others is free for reuse."""
        for layer_cache in (*self.keys, *self.values):
            layer_cache[: len(rows), :, : self.length] = layer_cache[rows, :, : self.length]
        self.rows = len(rows)

    def append_rows(self, prefix: KVCache, *, row: int, tokens: int, copies: int) -> None:
        """Add `copies` rows that hold the first `tokens` columns of `prefix`'s `row`, ending at the newest column."""
        rows, columns = slice(self.rows, self.rows + copies), slice(self.length - tokens, self.length)
        self.keys[:, rows, :, columns] = prefix.keys[:, row : row + 1, :, :tokens]
        self.values[:, rows, :, columns] = prefix.values[:, row : row + 1, :, :tokens]
        self.rows += copies

    def drop_columns(self, columns: int) -> None:
        """Forget the first `columns` columns of every row and move the rest to the front."""
        for layer_cache in (*self.keys, *self.values):
            layer_cache[..., : self.length - columns, :] = layer_cache[..., columns : self.length, :].clone()
        self.length -= columns
