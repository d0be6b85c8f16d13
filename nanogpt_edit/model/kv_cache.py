"""Keys and values of the tokens already seen, allocated once.

Appending a token is one slice write per layer and no allocation. Memory: 2 · n_layer · rows · kv_heads · capacity ·
head_size numbers (`nbytes`). The engine's cache, whose rows share their prompts, replaces `attend`.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.attention import attention
from nanogpt_edit.model.config import GPTConfig

LARGE = 2**20  # bytes; smaller memory is not worth a mapping


class KVCache:
    """Keys and values (n_layer, rows, kv_heads, capacity, head_size); columns 0 … length-1 are filled."""

    def __init__(
        self, config: GPTConfig, *, rows: int, capacity: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layer, rows, config.kv_heads, capacity, config.head_size)
        self.keys = zeros(*shape, device=device, dtype=dtype)
        self.values = zeros(*shape, device=device, dtype=dtype)
        self.rows, self.capacity, self.length = rows, capacity, 0

    @staticmethod
    def row_bytes(config: GPTConfig, *, capacity: int, dtype: torch.dtype) -> int:
        """Bytes that one row of `capacity` tokens takes."""
        return 2 * config.n_layer * config.kv_heads * capacity * config.head_size * dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Take in the new tokens' keys and values and let their queries look at everything seen (see `attention`)."""
        seen_keys, seen_values = self.extend(layer, keys, values)
        self.advance(layer, keys.shape[2])
        return attention(q, seen_keys, seen_values, mask=mask)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (rows, kv_heads, T, head_size) after the filled columns; return all columns up to and with them.

        They count as filled once `advance` has been told of the last layer.
        """
        end = self.length + keys.shape[2]
        if end > self.capacity:
            raise UserError(f"the key/value cache holds {self.capacity} tokens, {end} are needed; make it larger.")
        self.keys[layer, : self.rows, :, self.length : end] = keys
        self.values[layer, : self.rows, :, self.length : end] = values
        return self.keys[layer, : self.rows, :, :end], self.values[layer, : self.rows, :, :end]

    def advance(self, layer: int, tokens: int) -> None:
        """Count the new columns as filled once the last layer has written them."""
        if layer == len(self.keys) - 1:
            self.length += tokens


def zeros(*shape: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """torch.zeros; on a CPU the system gives memory for a part of them when that is first written: few of the columns
    that texts may fill are filled."""
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < LARGE:
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, size, access=mmap.ACCESS_COPY), dtype=dtype).view(shape)
