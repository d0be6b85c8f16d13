"""LoRA (Hu et al. 2022): a model learns through low-rank changes of its linear layers, its own weights untouched.

Beside every linear layer of the blocks runs a second path, x ↦ s B A x with A (R, in), B (out, R) and s = alpha / rank;
A begins at random and B at zero, so that nothing is changed at first. `merge` adds s B A to the weights.

The difference from `peft`: q, k and v are one matrix here and share their A.

    lora = Lora(model, rank=8)
    with lora.attached(model):          # only lora.parameters() have slopes in here
        ...                             # train
    lora.merge(model)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt_edit.model.gpt import GPT


class Lora(nn.Module):
    """A and B of every linear layer of a model's blocks, in float32."""

    def __init__(self, model: GPT, *, rank: int = 8, alpha: float | None = None, seed: int = 0) -> None:
        """`alpha` is twice the rank where none is given."""
        super().__init__()
        self.scale = 2.0 if alpha is None else alpha / rank
        layers = {f"blocks.{name}": each for name, each in model.blocks.named_modules() if isinstance(each, nn.Linear)}
        self.names = tuple(layers)
        """Of the layers, as the model has them: `blocks.0.attn.qkv`."""
        dice = torch.Generator().manual_seed(seed)
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        for layer in layers.values():
            bound = layer.in_features**-0.5
            a = (2 * torch.rand(rank, layer.in_features, generator=dice) - 1) * bound
            self.a.append(nn.Parameter(a.to(model.device)))
            self.b.append(nn.Parameter(torch.zeros(layer.out_features, rank, device=model.device)))

    @contextmanager
    def attached(self, model: GPT) -> Iterator[None]:
        """Inside: the model computes with the changes, and its own weights have no slopes."""
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        hooks = [
            model.get_submodule(name).register_forward_hook(_Path(a, b, self.scale))
            for name, a, b in zip(self.names, self.a, self.b, strict=True)
        ]
        try:
            for weight in trained:
                weight.requires_grad_(False)
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for weight in trained:
                weight.requires_grad_()

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By the name of each layer's weight, s B (out, R) and A (R, in), whose product is its change."""
        return {
            f"{name}.weight": (self.scale * b.detach(), a.detach())
            for name, a, b in zip(self.names, self.a, self.b, strict=True)
        }

    @torch.no_grad()
    def merge(self, model: GPT) -> None:
        """Add the changes to the weights for good."""
        for name, (left, right) in self.factors().items():
            weight = model.get_parameter(name)
            weight.add_((left @ right).to(weight.dtype))


class _Path:
    """Adds s B A x to what a layer gives."""

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        self.a, self.b, self.scale = a, b, scale

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        (x,) = inputs
        return out + self.scale * F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)).to(out.dtype)
