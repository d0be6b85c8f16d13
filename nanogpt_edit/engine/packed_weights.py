"""Second copies of a model's large matrices, for a time in which its weights do not change.

Decoding reads every matrix once per token of a few rows. In the order its library likes, the CPU reads it up to twice
as fast (`linear.Packed`); the price is the matrices' memory once more and a fraction of a second to copy them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nanogpt_edit.model import linear
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.linear import Linear, Packed


class PackedWeights:
    """Copies that are made when first needed and dropped with this object."""

    def __init__(self, model: GPT, *, max_bytes: int) -> None:
        """None are made where torch has no way to, where they would exceed `max_bytes`, or on another device."""
        self.model = model
        large = [layer for layer in model.modules() if isinstance(layer, Linear)]
        large = [layer for layer in large if layer.weight.numel() >= linear.LARGE_MATRIX]
        size = sum(layer.weight.nbytes for layer in large) + model.head_weight.nbytes
        usable = Packed.is_possible() and size <= max_bytes and model.device.type == "cpu"
        self.layers = {layer: Packed(layer.weight) for layer in large} if usable else {}
        self.head = Packed(model.head_weight) if usable else None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, products of a few rows take the copies; the weights must be those of the first time."""
        for layer, packed in self.layers.items():
            layer.packed = packed
        self.model.packed_head = self.head
        try:
            yield
        finally:
            for layer in self.layers:
                layer.packed = None
            self.model.packed_head = None
