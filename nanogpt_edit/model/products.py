"""Products of a few rows with large matrices, as decoding has them: the same numbers, in the order a CPU likes.

A step of decoding multiplies a handful of states with every matrix of the model. The CPU's matrix library is built for
square shapes and reads a wide matrix up to twice as slowly as it could when the other side is thin. Two ways around it,
both measured in docs/performance.md: W xᵀ instead of x Wᵀ for the layers, and a block of the vocabulary at a time for
the head, whose result is wanted row by row. Neither is used where a gradient is wanted, on another device, or for
matrices that stay in the cache.

Shapes: D inputs, V outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE_MATRIX = 2**18  # numbers; smaller ones are read from the cache
FEW_ROWS = 256  # with so many the gain is a tenth, with 512 it is gone
VOCABULARY_BLOCK = 1024  # rows of the head that are multiplied at once; 512 to 2048 are equally fast


class Linear(nn.Linear):
    """nn.Linear, faster for a few rows."""

    def forward(self, input: Tensor) -> Tensor:
        if not is_few(input, self.weight):
            return super().forward(input)
        columns = input.flatten(0, -2).t()  # (D, rows)
        product = self.weight @ columns if self.bias is None else torch.addmm(self.bias[:, None], self.weight, columns)
        return product.t().unflatten(0, input.shape[:-1])


def head_product(states: Tensor, weight: Tensor) -> Tensor:
    """states · weightᵀ: (..., D) and (V, D) -> (..., V), a block of the vocabulary at a time where that is faster."""
    if not is_few(states, weight) or len(weight) <= VOCABULARY_BLOCK:
        return F.linear(states, weight)
    return torch.cat([F.linear(states, block) for block in weight.split(VOCABULARY_BLOCK)], dim=-1)


def is_few(x: Tensor, weight: Tensor) -> bool:
    """Is x · weightᵀ a product of few rows with a large matrix, on a CPU and without gradient?"""
    return (
        x.numel() <= FEW_ROWS * x.shape[-1]
        and weight.numel() >= LARGE_MATRIX
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
