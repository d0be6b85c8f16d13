"""LoRA (Hu et al. 2022): a model learns through low-rank changes of its linear layers, its own weights untouched.

Beside a linear layer of the blocks runs a second path, x ↦ s B A x with A (R, in), B (out, R) and s = alpha / rank;
A begins at random and B at zero, so that nothing is changed at first. `merge` adds s B A to the weights. With the paths
off the model is what it was, bit for bit: GRPO's reference needs no copy of it.

The difference from `peft`: q, k and v are one matrix here and share their A.

    lora = Lora(model, rank=8)
    with lora.attached(model):          # only lora.parameters() have slopes in here
        ...                             # train
    lora.merge(model)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nanogpt_edit.common.distributed import gathered
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.frozen import freeze, thaw
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.linear import Linear, product_of
from nanogpt_edit.model.lora_config import LAYERS, LoraConfig


class Lora(nn.Module):
    """A and B of linear layers of a model's blocks, in float32."""

    def __init__(
        self,
        model: GPT,
        *,
        rank: int = 8,
        alpha: float | None = None,
        layers: Collection[str] = LAYERS,
        seed: int = 0,
    ) -> None:
        """Of the `layers` that a block has; `alpha` is twice the rank where none is given."""
        super().__init__()
        self.rank, self.scale = rank, 2.0 if alpha is None else alpha / rank
        found = {name: each for name, each in model.named_modules() if isinstance(each, Linear)}
        chosen = {name: each for name, each in found.items() if name.split(".", 2)[2] in layers}
        self.names = tuple(chosen)
        """Of the layers, as the model has them: `blocks.0.attn.qkv`."""
        dice = torch.Generator().manual_seed(seed)
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        for layer in chosen.values():
            bound = layer.in_features**-0.5
            a = (2 * torch.rand(rank, layer.in_features, generator=dice) - 1) * bound
            self.a.append(nn.Parameter(a.to(model.device)))
            self.b.append(nn.Parameter(torch.zeros(layer.out_features, rank, device=model.device)))
        self._frozen: list[nn.Parameter] = []

    @classmethod
    def of(cls, model: GPT, config: LoraConfig, *, seed: int) -> Lora | None:
        """As the settings say; None where they say that all weights learn.

        Raises UserError for a layer that the model's blocks do not have, and as `check_rank` does.
        """
        if not config.rank:
            return None
        check_rank(model, config)
        lora = cls(model, rank=config.rank, alpha=config.alpha, layers=config.layers, seed=seed)
        missing = [name for name in config.layers if f"blocks.0.{name}" not in lora.names]
        if missing and config.layers != LAYERS:
            raise UserError(
                f"names {missing[0]}, which the blocks of a {model.config.model_type} model do not have; leave it out.",
                field="lora.targets",
            )
        return lora

    def describe(self, model: GPT) -> str:
        """For people: "LoRA of rank 16 on 150 matrices: 4.33 M numbers learn beside 134.55 M that stay"."""
        learn, stay = (sum(each.numel() for each in part.parameters()) / 1e6 for part in (self, model))
        return (
            f"LoRA of rank {self.rank} on {len(self.names)} matrices: {learn:.2f} M numbers learn beside {stay:.2f} M "
            "that stay"
        )

    def attach(self, model: GPT) -> None:
        """From here on the model computes with the changes, and its own weights have no slopes."""
        self._frozen = freeze(model.parameters())
        for index, layer in enumerate(self._layers(model)):
            layer.adapter = Path(self, index)

    def detach(self, model: GPT) -> None:
        """Undo `attach`."""
        for layer in self._layers(model):
            layer.adapter = None
        thaw(self._frozen)
        self._frozen = []

    @contextmanager
    def attached(self, model: GPT) -> Iterator[None]:
        """Inside: the model computes with the changes, and its own weights have no slopes."""
        try:
            self.attach(model)
            yield
        finally:
            self.detach(model)

    @contextmanager
    def off(self, model: GPT) -> Iterator[GPT]:
        """Inside, the model to which this is attached computes without the changes, as before."""
        layers = self._layers(model)
        paths = [layer.adapter for layer in layers]
        try:
            for layer in layers:
                layer.adapter = None
            yield model
        finally:
            for layer, path in zip(layers, paths, strict=True):
                layer.adapter = path

    def _layers(self, model: GPT) -> list[Linear]:
        found = [model.get_submodule(name) for name in self.names]
        return [layer for layer in found if isinstance(layer, Linear)]

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By the name of each layer's weight, s B (out, R) and A (R, in), whole, whose product is its change."""
        return {
            f"{name}.weight": (self.scale * gathered(b.detach()), gathered(a.detach()))
            for name, a, b in zip(self.names, self.a, self.b, strict=True)
        }

    @torch.no_grad()
    def merge(self, model: GPT) -> None:
        """Add the changes to the weights for good."""
        for name, (left, right) in self.factors().items():
            weight = model.get_parameter(name)
            weight.add_((left @ right).to(weight.dtype))


class Path:
    """Adds s B A x to what a layer gives."""

    def __init__(self, lora: Lora, index: int) -> None:
        self.lora, self.index = lora, index

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        a, b = self.lora.a[self.index], self.lora.b[self.index]  # asked for anew: shards are other tensors in use
        inner = self.lora.scale * product_of(x, a.to(x.dtype))  # (..., R)
        return product + product_of(inner, b.to(inner.dtype)).to(product.dtype)

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        a, b = self.lora.a[self.index].detach(), self.lora.b[self.index].detach()
        return weight + ((self.lora.scale * b) @ a).to(weight.dtype)


def check_rank(model: GPT, config: LoraConfig) -> None:
    """Raise UserError for a rank that no matrix of the model's blocks has: more would only cost memory."""
    layers = (each for each in model.blocks.modules() if isinstance(each, Linear))
    largest = max(min(layer.in_features, layer.out_features) for layer in layers)
    if config.rank > largest:
        raise UserError(
            f"is {config.rank:,}, but no matrix of this model's blocks has a rank above {largest:,}; use 16 or so.",
            field="lora.rank",
        )
