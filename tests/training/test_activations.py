"""Activations computed again in the backward pass: the same gradient, bit for bit, and far less kept for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from torch import Tensor

from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.ragged import completion_states, packed_states
from nanogpt_edit.model.size import activation_bytes
from nanogpt_edit.training import parallel
from nanogpt_edit.training.config import LoopConfig
from nanogpt_edit.training.parallel import tokens_at_once
from nanogpt_edit.training.pretrain import next_token_loss
from nanogpt_edit.training.trainer import Trainer

ROWS = torch.randint(0, 40, (4, 16), generator=torch.Generator().manual_seed(0))


def packed(model: GPT) -> Tensor:
    lengths = torch.tensor([16, 3, 9, 1])
    tokens = torch.cat([row[:length] for row, length in zip(ROWS, lengths.tolist(), strict=True)])
    return model.logits(packed_states(model, tokens, lengths)).sin().sum()


def grouped(model: GPT) -> Tensor:
    prompts, completions = ROWS[:2, :7].tolist(), ROWS[:, 7:].tolist()
    return model.logits(completion_states(model, prompts, [completions[:2], completions[2:]])[0]).sin().sum()


def windows(model: GPT) -> Tensor:
    return next_token_loss(model, ROWS)


def gradients_and_bytes(loss: Callable[[GPT], Tensor], model: GPT) -> tuple[list[Tensor], int]:
    """The gradients, and how much of the forward pass was kept for them."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    torch.manual_seed(0)  # of the dropout
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(model)
    weights = {weight.data_ptr() for weight in model.parameters()}
    taken = sum(size for place, size in kept.items() if place not in weights)
    return list(torch.autograd.grad(value, list(model.parameters()))), taken


@pytest.mark.parametrize("loss", [packed, grouped, windows])
@pytest.mark.parametrize(("family", "dropout"), [("gpt2", 0.0), ("gpt2", 0.3), ("llama", 0.0)])
def test_the_gradient_is_the_same_bit_for_bit(loss: Callable[[GPT], Tensor], family: str, dropout: float) -> None:
    model = GPT(replace(tiny_config(family, vocab_size=40, block_size=24), n_layer=6, dropout=dropout), seed=0)
    expected, kept_bytes = gradients_and_bytes(loss, model)
    model.activation_checkpointing = True
    found, fewer_bytes = gradients_and_bytes(loss, model)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert fewer_bytes < kept_bytes / 3


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_a_token_keeps_is_estimated_within_a_fifth(family: str) -> None:
    mlp_size = None if family == "gpt2" else 704
    config = replace(
        tiny_config(family, vocab_size=40, block_size=24),
        n_layer=4,
        n_embd=256,
        mlp_dim=mlp_size,
        tie_embeddings=True,
    )
    of_four_rows = partial(packed_states, token_ids=ROWS.flatten(), lengths=torch.tensor([16] * 4))
    _, kept_bytes = gradients_and_bytes(lambda model: of_four_rows(model).sum(), GPT(config, seed=0))
    assert kept_bytes / 64 == pytest.approx(activation_bytes(config, checkpointing=False), rel=0.2)


def test_as_many_tokens_go_through_at_once_as_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GiB, or an eighth of the memory where that is less, over what a token keeps; else what the settings say."""
    model = GPT(tiny_config("gpt2"), seed=0)
    monkeypatch.setattr(parallel, "activation_bytes", lambda *given, **more: 2**20)
    assert tokens_at_once(model, LoopConfig()) == 2048
    monkeypatch.setattr(parallel, "machine_bytes", lambda: 2**30)
    assert tokens_at_once(model, LoopConfig()) == 128
    assert tokens_at_once(model, LoopConfig(micro_batch_tokens=5000)) == 5000
    monkeypatch.setattr(parallel, "activation_bytes", lambda *given, **more: 1)
    assert tokens_at_once(model, LoopConfig()) == 16_384


def test_it_is_on_while_a_stage_trains(tmp_path: Path) -> None:
    model = GPT(tiny_config("gpt2"), seed=0)
    config = LoopConfig(steps=1, activation_checkpointing=True)
    trainer = Trainer(model, config, label="sft", state=tmp_path / "state", log=tmp_path / "log.jsonl")
    assert model.activation_checkpointing
    trainer.finish("last")
    assert not model.activation_checkpointing
