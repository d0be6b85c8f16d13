"""How well a model predicts text it was not trained on: nats per token, and their exponential, the perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_edit.common.stats import Interval, quantity
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.data.text import read_text, token_blocks
from nanogpt_edit.evaluation.targets import LOGIT_NUMBERS
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer

TEXT_BLOCK = 256  # tokens of a block of held-out text


def held_out_text(source: str, tokenizer: Tokenizer, *, block_size: int) -> Tensor:
    """The test split of a text, in blocks for `Skills.text`: (N, T + 1). Raises what `read_text` raises."""
    return token_blocks(read_text(source, split="test"), tokenizer, block_size=min(TEXT_BLOCK, block_size - 1))


@torch.inference_mode()
def block_nats(model: GPT, blocks: Tensor, *, rows: int = 32) -> list[float]:
    """Mean nats per token of each of `blocks` (N, T + 1). A model in training goes on in training."""
    was_training = model.training
    model.eval()
    nats: list[float] = []
    with progress("held-out text", len(blocks), "blocks", brief=True) as bar:
        for start in range(0, len(blocks), rows):
            token_ids = blocks[start : start + rows].to(model.device)
            nats += nats_of(model, model.hidden(token_ids[:, :-1]), token_ids)
            bar.update(len(nats))
    model.train(was_training)
    return nats


@torch.inference_mode()
def nats_of(model: GPT, states: Tensor, blocks: Tensor) -> list[float]:
    """Mean nats per token of each of `blocks` (N, T + 1), on which `states` (N, T, D) are what the model has read."""
    room = max(1, LOGIT_NUMBERS // model.config.vocab_size)
    targets = blocks[:, 1:].flatten().to(states.device)
    losses = [
        F.cross_entropy(model.logits(part).float(), wanted, reduction="none")
        for part, wanted in zip(states.flatten(0, 1).split(room), targets.split(room), strict=True)
    ]
    return list(map(float, torch.cat(losses).view(len(blocks), -1).mean(dim=1).double().tolist()))


def perplexity(nats: Sequence[float]) -> dict[str, Interval]:
    """The mean of the blocks' nats per token and its exponential, with intervals over blocks."""
    mean = quantity(nats)
    bounds = {name: math.exp(getattr(mean, name)) for name in ("value", "low", "high")}
    return {"perplexity": Interval(**bounds, n=mean.n), "nats_per_token": mean}
