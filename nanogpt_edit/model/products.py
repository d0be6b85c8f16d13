"""Products of a few rows with large matrices, as decoding has them: the same numbers, in the order a CPU likes.

A step of decoding multiplies a handful of states with every matrix of the model. The CPU's matrix library is built for
square shapes and reads a wide matrix up to twice as slowly as it could when the other side is thin. Three ways around
it, measured in docs/performance.md: a second copy of the matrix in the order oneDNN reads fastest, where somebody says
that the weights will not change for a while (`packed_weights.py`); otherwise W xᵀ instead of x Wᵀ for the layers, and a
block of the vocabulary at a time for the head, whose result is wanted row by row. None is used where autograd
is to follow, on another device, or for matrices that stay in the cache.

Shapes: D inputs, V outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE_MATRIX = 2**18  # numbers; smaller ones are read from the cache
FEW_ROWS = 256  # with so many the gain is a tenth, with 512 it is gone
PACKED_ROWS = 24  # with more a packed copy is no faster
TYPICAL_ROWS = 8  # that a packed copy is laid out for; 8 to 32 give the same
VOCABULARY_BLOCK = 1024  # rows of the head that are multiplied at once; 512 to 2048 are equally fast


class Packed:
    """A matrix (V, D) once more, as oneDNN likes to read it, made when first asked for; it does not follow changes."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._copy: Tensor | None = None

    @staticmethod
    def is_possible() -> bool:
        """Is torch built with oneDNN, and with its operators that `torch.compile` uses for inference on a CPU?"""
        operators = torch.ops.mkldnn
        return torch.backends.mkldnn.is_available() and all(
            hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
        )

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x · weightᵀ + bias: (..., D) -> (..., V)."""
        if self._copy is None:
            self._copy = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), TYPICAL_ROWS)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._copy, bias, "none", [], "")
        return product


class Linear(nn.Linear):
    """nn.Linear, faster for a few rows."""

    packed: Packed | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not is_few(input, self.weight):
            return super().forward(input)
        if self.packed is not None and rows_of(input) <= PACKED_ROWS:
            return self.packed(input, self.bias)
        columns = input.reshape(-1, input.shape[-1]).t()  # (D, rows)
        product = self.weight @ columns if self.bias is None else torch.addmm(self.bias[:, None], self.weight, columns)
        return product.t().reshape(*input.shape[:-1], len(self.weight))


def head_product(states: Tensor, weight: Tensor, packed: Packed | None = None) -> Tensor:
    """states · weightᵀ: (..., D) and (V, D) -> (..., V), with `packed` or a block of the vocabulary at a time where
    that is faster."""
    if packed is not None and is_few(states, weight) and rows_of(states) <= PACKED_ROWS:
        return packed(states)
    if not is_few(states, weight) or len(weight) <= VOCABULARY_BLOCK:
        return F.linear(states, weight)
    return torch.cat([F.linear(states, block) for block in weight.split(VOCABULARY_BLOCK)], dim=-1)


def is_few(x: Tensor, weight: Tensor) -> bool:
    """Is x · weightᵀ a product of few rows with a large matrix, on a CPU and without gradient?"""
    return (
        rows_of(x) <= FEW_ROWS
        and weight.numel() >= LARGE_MATRIX
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def rows_of(x: Tensor) -> int:
    """How many vectors x (..., D) has."""
    return x.numel() // x.shape[-1]
