"""Next-token prediction on plain text, for a model that starts from nothing.

Each row of a batch is a window that begins where a document begins, so that the model also learns what stands at the
start of a text; documents are separated by the end-of-text token.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from nanogpt_edit.common import distributed
from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.text import TokenStream, random_windows
from nanogpt_edit.evaluation.perplexity import block_nats
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.head import head_cross_entropy_sum
from nanogpt_edit.training.pretrain_config import PretrainConfig
from nanogpt_edit.training.trainer import Trainer


def check_window(field: str, tokens: int, model: GPT) -> None:
    """Raise UserError when the model cannot read as many tokens at once as the `field` of a recipe says."""
    if tokens > model.config.block_size:
        raise UserError(
            f"{field} is {tokens}, more than the {model.config.block_size} tokens (block_size) that the model can read."
        )


def next_token_loss(model: GPT, windows: Tensor) -> Tensor:
    """Mean nats per token of predicting each window's tokens from those before: (B, T + 1) -> scalar."""
    states = model.hidden(windows[:, :-1]).flatten(0, 1)
    return head_cross_entropy_sum(states, model.head_weight, windows[:, 1:].flatten()) / windows[:, 1:].numel()


def held_out_loss(model: GPT, blocks: Tensor) -> float:
    """Mean nats per token over `blocks` (N, T + 1), of which every process looks at its share."""
    nats = distributed.map_over_ranks(range(len(blocks)), lambda own: block_nats(model, blocks[list(own)]))
    return sum(nats) / len(nats)


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
