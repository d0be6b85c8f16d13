"""Next-token prediction on plain text, for a model that starts from nothing.

Each row of a batch is a window that begins where a document begins, so that the model also learns what stands at the
start of a text; documents are separated by the end-of-text token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanogpt_edit.common import distributed
from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import counted, progress
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.training.chunked_loss import head_cross_entropy_sum
from nanogpt_edit.training.pretrain_config import PretrainConfig as PretrainConfig
from nanogpt_edit.training.trainer import Trainer


@dataclass(frozen=True)
class TokenStream:
    """Documents as one row of token ids, and the places where a training window may begin."""

    token_ids: Tensor  # (tokens,) int64
    starts: Tensor  # (windows,) int64: the first token of each document, and every `context` tokens inside long ones


def token_stream(documents: Sequence[str], tokenizer: Tokenizer, *, context_tokens: int) -> TokenStream:
    """Tokenise `documents` and note where windows of `context_tokens` may begin.

    Raises UserError when there is no text, or less of it than one window.
    """
    ids: list[int] = []
    starts: list[int] = []
    separator = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for document in counted(documents, "tokenising", unit="documents"):
        document_ids = tokenizer.encode(document) + separator
        starts += range(len(ids), len(ids) + len(document_ids), context_tokens)
        ids += document_ids
    last = len(ids) - context_tokens - 1
    starts = [start for start in starts if start <= last]
    if not starts:
        raise UserError(f"the text has {len(ids)} tokens, less than one window of {context_tokens}; give more text.")
    return TokenStream(torch.tensor(ids), torch.tensor(starts))


def check_window(field: str, tokens: int, model: GPT) -> None:
    """Raise UserError when the model cannot read as many tokens at once as the `field` of a recipe says."""
    if tokens > model.config.block_size:
        raise UserError(
            f"{field} is {tokens}, more than the {model.config.block_size} tokens (block_size) that the model can read."
        )


def random_windows(stream: TokenStream, *, rows: int, context_tokens: int, seed: int, step: int) -> Tensor:
    """(rows, context_tokens + 1) token ids, windows chosen by (seed, step)."""
    choice = np.random.default_rng([seed, step]).integers(len(stream.starts), size=rows)
    columns = torch.arange(context_tokens + 1)
    return stream.token_ids[stream.starts[torch.from_numpy(choice)][:, None] + columns]


def next_token_loss(model: GPT, windows: Tensor) -> Tensor:
    """Mean nats per token of predicting each window's tokens from those before: (B, T + 1) -> scalar."""
    states = model.hidden(windows[:, :-1]).flatten(0, 1)
    return head_cross_entropy_sum(states, model.head_weight, windows[:, 1:].flatten()) / windows[:, 1:].numel()


@torch.inference_mode()
def held_out_loss(model: GPT, blocks: Tensor, *, rows: int = 32) -> float:
    """Mean nats per token over `blocks` (N, T + 1)."""
    model.eval()
    with progress("base validation", len(blocks.split(rows)), "batches", brief=True) as bar:
        sums = distributed.map_over_ranks(
            blocks.split(rows),
            lambda own: [next_token_loss(model, part.to(model.device)).item() * len(part) for part in bar.counted(own)],
        )
    model.train()
    return sum(sums) / len(blocks)


def share_of_loss(model: GPT, windows: Tensor, *, of_rows: int) -> Tensor:
    """What `windows` contribute to the mean over a step of `of_rows` windows."""
    return next_token_loss(model, windows.to(model.device)) * (len(windows) / of_rows)


@checked
def pretrain(
    model: GPT,
    stream: TokenStream,
    validation: Tensor,
    config: PretrainConfig,
    *,
    seed: int,
    state: Path,
    log: Path,
    shard: bool = False,
) -> Trainer:
    """Train `model` in place on `stream`; `validation` (N, T + 1) blocks are looked at now and then, never kept by."""
    check_window("pretrain.context_tokens", config.context_tokens, model)
    trainer = Trainer(model, config, label="base", state=state, log=log, shard=shard)
    for step in trainer.steps():
        windows = random_windows(
            stream, rows=config.batch_size, context_tokens=config.context_tokens, seed=seed, step=step
        )
        own = windows[distributed.rank() :: distributed.world_size()]
        share = partial(share_of_loss, of_rows=len(windows))
        loss = trainer.parallel.backward(share, [own] if len(own) else [], dummy=windows[:1])
        metrics = {"loss": loss, "grad_norm": trainer.apply_gradients()}
        if trainer.is_time_to_evaluate():
            with trainer.parallel.gathered() as whole:
                metrics["val_loss"] = held_out_loss(whole, validation)
        trainer.log(metrics, tokens=windows[:, 1:].numel())
    trainer.finish("last")
    return trainer
