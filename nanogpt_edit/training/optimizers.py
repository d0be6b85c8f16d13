"""The optimizers of every training stage."""

from __future__ import annotations

import torch
from torch import nn

from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.training.config import LoopConfig
from nanogpt_edit.training.muon import Muon


def make_optimizers(trained: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all that a module has, decaying matrices only; with Muon for the matrices of a model's blocks where the
    config says so."""
    blocks = trained.blocks if config.optimizer == "muon" and isinstance(trained, GPT) else nn.Module()
    inner = dict(blocks.named_parameters())
    orthogonal = [weight for weight in inner.values() if weight.dim() == 2]
    taken = {id(weight) for weight in orthogonal}
    others = [weight for weight in trained.parameters() if id(weight) not in taken]
    adamw = torch.optim.AdamW(
        [
            {"params": [w for w in others if w.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [w for w in others if w.dim() < 2], "weight_decay": 0.0},
        ],
        lr=float(config.learning_rate),
        betas=(0.9, config.beta2),
        fused=True,
    )
    if not orthogonal:
        return [adamw]
    return [adamw, Muon(orthogonal, lr=config.muon_learning_rate, weight_decay=config.weight_decay)]
