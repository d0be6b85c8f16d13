"""Second copies of a model's large matrices, for a time in which its weights do not change.

Decoding reads every matrix once per token of a few rows. In the order its library likes, the CPU reads it up to twice
as fast (`linear.Packed`); the price is the matrices' memory once more and a fraction of a second to copy them. Where
products are made in bfloat16 of float32 weights (`autocast`), a copy in bfloat16, on a CPU in that order, spares every
token the casting.
Where a layer has an adapter, its change is merged into the copy, and the layer's own weight stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from nanogpt_edit.common.device import product_dtype
from nanogpt_edit.model import linear
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.linear import Linear, Packed


class PackedWeights:
    """Copies that are made when first needed and dropped with this object."""

    def __init__(self, model: GPT, *, max_bytes: int) -> None:
        """None are made where torch has no way to, where they would exceed `max_bytes`, or on another device."""
        self.model, dtype = model, product_dtype(model.embed.weight)
        every = [layer for layer in model.modules() if isinstance(layer, Linear)]
        cast = dtype != model.dtype
        large = [layer for layer in every if cast or layer.weight.numel() >= linear.LARGE_LAYER]
        adapted = [layer for layer in every if layer.adapter is not None and layer not in large]
        matrices = [model.head_weight, *(layer.weight for layer in large + adapted)]
        size = sum(matrix.numel() for matrix in matrices) * dtype.itemsize
        usable = Packed.is_possible(dtype) and size <= max_bytes and model.device.type == "cpu"
        self.layers = {layer: Packed(layer.weight, layer.adapter, dtype=dtype) for layer in large} if usable else {}
        self.merged = {layer: whole_weight(layer) for layer in adapted} if usable else {}
        self.head = Packed(model.head_weight, dtype=dtype) if usable else None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, products of a few rows take the copies; the weights must be those of the first time."""
        for layer, packed in self.layers.items():
            layer.packed = packed
        for layer, merged in self.merged.items():
            layer.cast = merged
        self.model.packed_head = self.head
        try:
            yield
        finally:
            for layer in self.layers:
                layer.packed = None
            for layer in self.merged:
                layer.cast = None
            self.model.packed_head = None


class CastWeights:
    """Copies in the dtype that products are made in, at places that stay; none where that is the weights' own, unless a
    layer has an adapter."""

    def __init__(self, model: GPT) -> None:
        self.model, dtype = model, product_dtype(model.embed.weight)
        every = [layer for layer in model.modules() if isinstance(layer, Linear)]
        other = dtype != model.dtype
        self.layers = {layer: whole_weight(layer).to(dtype) for layer in every if other or layer.adapter is not None}
        self.head = model.head_weight.detach().to(dtype) if other else None

    def refresh(self) -> None:
        """Take the weights as they are now."""
        for layer, cast in self.layers.items():
            cast.copy_(whole_weight(layer))
        if self.head is not None:
            self.head.copy_(self.model.head_weight)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the model's products take the copies."""
        for layer, cast in self.layers.items():
            layer.cast = cast
        self.model.cast_head = self.head
        try:
            yield
        finally:
            for layer in self.layers:
                layer.cast = None
            self.model.cast_head = None


def whole_weight(layer: Linear) -> Tensor:
    """A layer's weight, with its adapter's change where it has one."""
    weight = layer.weight.detach()
    return weight if layer.adapter is None else layer.adapter.merged(weight)
