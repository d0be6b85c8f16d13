"""Products of a few rows with large matrices, as decoding has them: the same numbers, in the order a CPU likes.

A step of decoding multiplies a handful of states with every matrix of the model. The CPU's matrix library is built for
square shapes and reads a wide matrix up to twice as slowly as it could when the other side is thin. Two ways around it,
measured in docs/performance.md: a second copy of the matrix in the order oneDNN reads fastest, where somebody says that
the weights will not change for a while (`packed_weights.py`); and W xᵀ instead of x Wᵀ, with as many columns as the
library's kernel likes. Neither is used where autograd is to follow, on another device, or for matrices that stay in the
cache.

Where a CPU is asked for products in bfloat16 (`autocast`), oneDNN makes them, and builds a kernel for every number of
rows that it meets: 2 MB and some milliseconds each, of which it keeps a thousand and seldom gives one back. Rows of
text come in another number at every step. So they are filled up with zeros to one of few numbers (`whole_rows`), and a
packed copy in bfloat16 is made of every matrix.

Shapes: D inputs, V outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt_edit.common.device import product_dtype

LARGE_MATRIX = 2**18  # numbers of a head's; smaller ones are read from the cache
LARGE_LAYER = 2**20  # of a layer's: torch reads smaller ones, as thin deep models have them, as fast as either way
FEW_ROWS = 256  # with so many the gain is a tenth, with 512 it is gone
KERNEL_COLUMNS = 16  # W xᵀ takes so many at once; what is left over costs up to as much as all of them
PACKED_ROWS = 64  # from here on a packed copy is slower where W xᵀ has no columns left over
SIZES_PER_OCTAVE = 16  # numbers of rows from n to 2n in bfloat16: three in a hundred are zeros
LEAST_ROWS = 8  # between two of them
TYPICAL_ROWS = 8  # that a packed copy is laid out for; 8 to 64 give the same


class Adapter(Protocol):
    """A change of a matrix (V, D) that is not in the matrix itself (`lora.py`)."""

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """What x (..., D) becomes by the changed matrix, of what it becomes by the matrix, (..., V)."""

    def merged(self, weight: Tensor) -> Tensor:
        """The changed matrix, of the matrix."""


class Packed:
    """A matrix (V, D) once more, in the dtype of products and as oneDNN likes to read it, made when first asked for; it
    does not follow changes."""

    def __init__(self, weight: Tensor, adapter: Adapter | None = None, *, dtype: torch.dtype | None = None) -> None:
        """`dtype` None: the weight's own."""
        self.weight, self.adapter, self.dtype = weight, adapter, dtype or weight.dtype
        self._copy: Tensor | None = None

    @staticmethod
    def is_possible(dtype: torch.dtype = torch.float32) -> bool:
        """Is torch built with oneDNN, and with its operators that `torch.compile` uses for inference on a CPU? Does
        this CPU multiply in `dtype`?"""
        if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
            return False
        operators = torch.ops.mkldnn
        names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
        there = all(hasattr(operators, name) for name in names)
        return there and (dtype == torch.float32 or bool(operators._is_mkldnn_bf16_supported()))

    @property
    def is_cast(self) -> bool:
        """Is it in another dtype than the weight, which spares every product the casting?"""
        return self.dtype != self.weight.dtype

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x · weightᵀ + bias: (..., D) -> (..., V) in `dtype`."""
        if self._copy is None:
            weight = self.weight if self.adapter is None else self.adapter.merged(self.weight)
            self._copy = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(self.dtype), TYPICAL_ROWS)
        if not self.is_cast:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._copy, bias, "none", [], "")
            return product
        rows, bias = whole_rows(x.flatten(0, -2), self.dtype), None if bias is None else bias.to(self.dtype)
        product = torch.ops.mkldnn._linear_pointwise(rows, self._copy, bias, "none", [], "")
        return product[: rows_of(x)].view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """nn.Linear, faster for a few rows; and where what a model learns may stand beside its weight."""

    adapter: Adapter | None = None
    packed: Packed | None = None
    """The weight once more, its adapter's change in it, while somebody says neither moves (`packed_weights.py`),"""
    cast: Tensor | None = None
    """or as a matrix in the dtype of products."""

    def forward(self, input: Tensor) -> Tensor:
        if self.cast is not None:
            return F.linear(input, self.cast, self.bias)
        few = self.weight.numel() >= LARGE_LAYER and is_few(input, self.weight)
        packed = None if torch.compiler.is_compiling() else self.packed  # the compiler has ways of its own
        if packed is not None and (packed.is_cast or (few and packed_is_faster(rows_of(input)))):
            return packed(input, self.bias)
        product = self._few(input) if few else product_of(input, self.weight, self.bias)
        return product if self.adapter is None else self.adapter(input, product)

    def _few(self, input: Tensor) -> Tensor:
        columns = columns_of(input)
        product = self.weight @ columns if self.bias is None else torch.addmm(self.bias[:, None], self.weight, columns)
        return product[:, : rows_of(input)].t().reshape(*input.shape[:-1], len(self.weight))


def product_of(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias: (..., D) -> (..., V), in bfloat16 where a CPU is asked for that."""
    in_bfloat16 = x.device.type == "cpu" and product_dtype(weight) == torch.bfloat16
    if in_bfloat16 and not torch.compiler.is_compiling():
        return _in_bfloat16(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], len(weight))
    return F.linear(x, weight, bias)


class _InBfloat16(torch.autograd.Function):
    """x (N, D) · weightᵀ + bias, all products in bfloat16, of whole rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = whole_rows(x, torch.bfloat16)
        ctx.save_for_backward(rows, weight)
        ctx.given, ctx.dtype = len(x), x.dtype
        product = rows @ weight.to(torch.bfloat16).T
        return (product if bias is None else product.add_(bias))[: len(x)]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        slope = whole_rows(slopes[0], torch.bfloat16)
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            (slope @ weight.to(torch.bfloat16))[: ctx.given].to(ctx.dtype) if to_x else None,
            (slope.T @ rows).to(weight.dtype) if to_weight else None,
            slopes[0].sum(0, dtype=torch.float32) if to_bias else None,
        )


_in_bfloat16: Callable[..., Tensor] = _InBfloat16.apply


def whole_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (N, D) in `dtype`; in bfloat16 on a CPU with rows of zeros behind, up to one of few numbers."""
    size = whole(len(x)) if dtype == torch.bfloat16 and x.device.type == "cpu" else len(x)
    if size == len(x):
        return x.to(dtype)
    rows = x.new_empty(size, x.shape[1], dtype=dtype)
    rows[: len(x)], rows[len(x) :] = x, 0
    return rows


def whole(rows: int) -> int:
    """The next of the numbers 8, 16, … of which there are `SIZES_PER_OCTAVE` between n and 2n: 1 -> 8, 300 -> 304."""
    step = max(LEAST_ROWS, 2 ** (max(rows - 1, 1).bit_length() - 1) // SIZES_PER_OCTAVE)
    return -(-rows // step) * step


def packed_is_faster(rows: int) -> bool:
    """Than W xᵀ, with so many rows? One reads the matrix as it lies as fast as memory gives it."""
    return rows > 1 and (rows < PACKED_ROWS or rows % KERNEL_COLUMNS > 0)


def columns_of(x: Tensor) -> Tensor:
    """x (..., D) -> xᵀ (D, rows), as the kernel likes it: a few rows one after the other, more in whole kernels."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= KERNEL_COLUMNS // 2:
        return rows.contiguous().t()
    missing = -len(rows) % KERNEL_COLUMNS
    return F.pad(rows.t(), (0, missing)) if missing else rows.t()


def is_few(x: Tensor, weight: Tensor) -> bool:
    """Is x · weightᵀ a product of few rows with a large matrix, on a CPU and without gradient?"""
    return (
        rows_of(x) <= FEW_ROWS
        and weight.numel() >= LARGE_MATRIX
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def rows_of(x: Tensor) -> int:
    """How many vectors x (..., D) has."""
    return x.numel() // x.shape[-1]
