"""LoRA: nothing at first, the same as a changed weight in values and slopes, and gone when it is taken off."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config

from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lora import Lora

IDS = torch.randint(0, 290, (2, 12), generator=torch.Generator().manual_seed(1))


def learned(family: str) -> tuple[GPT, Lora]:
    """A model, and adapters whose B is no longer zero."""
    model = GPT(tiny_config(family), seed=0).eval()
    lora = Lora(model, rank=3, alpha=12, seed=0)
    for b in lora.b:
        torch.nn.init.normal_(b, std=0.2, generator=torch.Generator().manual_seed(len(b)))
    return model, lora


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_attached_or_merged_is_the_same(family: str) -> None:
    model, lora = learned(family)
    plain = model(IDS)
    with lora.attached(model):
        attached = model(IDS)
    torch.testing.assert_close(model(IDS), plain, rtol=0, atol=0)
    lora.merge(model)
    torch.testing.assert_close(model(IDS), attached, rtol=1e-4, atol=1e-5)
    assert (attached - plain).abs().max() > 0.01


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_linear_layer_of_every_block_has_a_path_that_adds_nothing_at_first(family: str) -> None:
    model = GPT(tiny_config(family), seed=0).eval()
    lora = Lora(model, rank=2)
    per_block = ["attn.qkv", "attn.out", *(["mlp.gate"] if family == "llama" else []), "mlp.up", "mlp.down"]
    assert lora.names == tuple(f"blocks.{layer}.{name}" for layer in range(2) for name in per_block)
    with lora.attached(model):
        attached = model(IDS)
    assert torch.equal(attached, model(IDS))
    assert all(0 < a.abs().max() <= a.shape[1] ** -0.5 for a in lora.a)


def test_slopes_are_those_of_the_changed_weight() -> None:
    """∂L/∂B = s ∂L/∂W Aᵀ and ∂L/∂A = s Bᵀ ∂L/∂W, with s = 12 / 3; the model's own weights have none."""
    model, lora = learned("llama")
    with lora.attached(model):
        assert not any(weight.requires_grad for weight in model.parameters())
        model(IDS).square().mean().backward()
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    lora.merge(model)
    model(IDS).square().mean().backward()
    for name, a, b in zip(lora.names, lora.a, lora.b, strict=True):
        slope = model.get_parameter(f"{name}.weight").grad
        assert slope is not None
        torch.testing.assert_close(b.grad, 4 * slope @ a.T, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(a.grad, 4 * b.T @ slope, rtol=1e-3, atol=1e-6)


def test_it_comes_off_when_something_fails() -> None:
    model, lora = learned("gpt2")
    model.embed.weight.requires_grad_(False)
    plain = model(IDS)
    with pytest.raises(RuntimeError, match="on purpose"), lora.attached(model):
        raise RuntimeError("on purpose")
    assert torch.equal(model(IDS), plain)
    assert not model.embed.weight.requires_grad
    assert model.norm.weight.requires_grad
