"""Supervised fine-tuning: cross-entropy on the completion's tokens only.

Where tokens were added to the vocabulary, their rows are fitted before the first step (`new_rows.py`).

The sum over all target tokens of a step is divided by their number, whatever the micro-batches and the processes, so
neither changes the gradient. Logits are computed at target positions only. `replay` mixes in rows of another source,
against forgetting: the base text, other text, or a second set of problems (measured on a prototype of the demo: without
it, fact recall fell from 100% to 1% in 300 steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_edit.common import distributed
from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.data.batch import Batch, collate, micro_batches, rows_of_step
from nanogpt_edit.data.samples import Sample
from nanogpt_edit.data.text import TokenStream, random_windows
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.head import head_cross_entropy_sum
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.lora import Lora
from nanogpt_edit.model.ragged import packed_states
from nanogpt_edit.training import states
from nanogpt_edit.training.new_rows import fit_new_rows, untrained_rows
from nanogpt_edit.training.parallel import tokens_at_once
from nanogpt_edit.training.pretrain import check_window
from nanogpt_edit.training.sft_config import SFTConfig
from nanogpt_edit.training.trainer import Trainer


def completion_loss_sum(model: GPT, batch: Batch) -> Tensor:
    """Sum of -log p over the target tokens of `batch`, nats; logits at target positions only."""
    batch = batch.to(model.device)
    is_read, is_predicted = batch.neighbours()
    wanted = batch.is_target[is_predicted]
    packed = packed_states(model, batch.token_ids[is_read], batch.lengths - 1, wanted=wanted)
    return head_cross_entropy_sum(packed, model.head_weight, batch.token_ids[is_predicted][wanted])


def share_of_loss(model: GPT, batch: Batch, *, targets: int) -> Tensor:
    """What `batch` contributes to the mean over a step of `targets` target tokens."""
    return completion_loss_sum(model, batch) / targets


def target_tokens(samples: Sequence[Sample]) -> int:
    """How many tokens of `samples` are predicted (the first token of a row never is)."""
    return sum(sum(sample.loss_mask[1:]) for sample in samples)


@torch.inference_mode()
def validation_loss(model: GPT, samples: Sequence[Sample], *, max_tokens: int) -> float:
    """Mean nats per completion token."""
    model.eval()
    batches = list(micro_batches(samples, max_tokens=max_tokens))
    with progress("sft validation", len(batches), "batches", brief=True) as bar:
        sums = distributed.map_over_ranks(
            batches, lambda own: [completion_loss_sum(model, batch).item() for batch in bar.counted(own)]
        )
    model.train()
    return sum(sums) / target_tokens(samples)


@checked
def sft(
    model: GPT,
    samples: Sequence[Sample],
    validation: Sequence[Sample],
    config: SFTConfig,
    *,
    replay: TokenStream | Sequence[Sample] | None,
    seed: int,
    state: Path,
    log: Path,
    shard: bool = False,
) -> Trainer:
    """Fine-tune `model` in place and leave the weights with the lowest validation loss (or the last) in it.

    `replay` is the other source, text or problems; None mixes none in, whatever the config's share.
    """
    if isinstance(replay, TokenStream):
        check_window("sft.replay_tokens", config.replay_tokens, model)
    adapter = Lora.of(model, config.lora, seed=seed)
    if adapter is not None:  # no state holds the new rows: where it goes on they are fitted once more
        fit_base(model, samples, config)
    new = rows_to_fit(model, config)
    trainer = Trainer(model, config, label="sft", state=state, log=log, shard=shard, lora=adapter, frozen=config.frozen)
    batch_size = problems_per_step(samples, config)
    for step in trainer.steps():
        if step == 0 and new:
            fit_first(trainer, samples[: config.fit_problems], new)
        rows = [samples[row] for row in rows_of_step(len(samples), rows=batch_size, seed=seed, step=step)]
        problem_targets = target_tokens(rows)
        if replay is not None and config.replay_rows:
            rows += replay_samples(replay, config, seed=seed, step=step)
        loss, norm = train_on(trainer, rows)
        metrics = {"loss": loss, "grad_norm": norm, "target_tokens": problem_targets}
        if trainer.is_time_to_evaluate():
            with trainer.parallel.gathered() as whole:
                metrics["val_loss"] = validation_loss(whole, validation, max_tokens=trainer.tokens_at_once)
            trainer.keep_if_best(-metrics["val_loss"])
        trainer.log(metrics, tokens=sum(len(row.token_ids) for row in rows))
    trainer.finish(config.keep)
    return trainer


def rows_to_fit(model: GPT, config: SFTConfig) -> tuple[int, ...]:
    """The head's rows that are to be fitted, which the lineage then says."""
    new = untrained_rows(model) if config.steps and config.fit_problems else ()
    if new:
        said = f"head rows {new[0]} to {new[-1]} fitted on {config.fit_problems} problems"
        model.lineage = (*model.lineage, LineageEntry("fitted", said))
    return new


def fit_base(model: GPT, samples: Sequence[Sample], config: SFTConfig) -> None:
    """Fit the rows of new tokens in a model whose own weights will not learn; once."""
    if new := rows_to_fit(model, config):
        fit_new_rows(model, samples[: config.fit_problems], new, max_tokens=tokens_at_once(model, config))


def fit_first(trainer: Trainer, samples: Sequence[Sample], rows: Sequence[int]) -> None:
    """Fit the rows of new tokens in the trainer's model, as it is before its first step."""
    with trainer.parallel.gathered() as whole:
        fit_new_rows(whole, samples, rows, max_tokens=trainer.tokens_at_once)
        if trainer.shard:
            states.fill(trainer.model.head_weight, whole.head_weight)


def train_on(trainer: Trainer, rows: Sequence[Sample]) -> tuple[float, float]:
    """One optimizer step on `rows`, dealt out to the processes -> its loss and the norm of its gradient."""
    batches = micro_batches(distributed.shard(rows), max_tokens=trainer.tokens_at_once)
    share, dummy = partial(share_of_loss, targets=target_tokens(rows)), collate(rows[:1])
    return trainer.parallel.backward(share, list(batches), dummy=dummy), trainer.apply_gradients()


def problems_per_step(samples: Sequence[Sample], config: SFTConfig) -> int:
    """`batch_size`, or fewer where `batch_tokens` says so and the samples are long on average.

    Raises UserError for fewer tokens than one sample has.
    """
    if config.batch_tokens is None:
        return config.batch_size
    mean_tokens = sum(len(sample.token_ids) for sample in samples) / len(samples)
    if config.batch_tokens < mean_tokens:
        raise UserError(
            f"sft.batch_tokens is {config.batch_tokens}, less than the {mean_tokens:.0f} tokens of one problem and its "
            f"solution; give room for several."
        )
    return min(config.batch_size, int(config.batch_tokens / mean_tokens))


def replay_samples(replay: TokenStream | Sequence[Sample], config: SFTConfig, *, seed: int, step: int) -> list[Sample]:
    """Rows of text in which every token is a target, or further problems."""
    if not isinstance(replay, TokenStream):
        return [replay[row] for row in rows_of_step(len(replay), rows=config.replay_rows, seed=seed, step=step)]
    windows = random_windows(
        replay, rows=config.replay_rows, context_tokens=config.replay_tokens - 1, seed=seed, step=step
    )
    return [Sample(token_ids=tuple(row), loss_mask=(1,) * len(row)) for row in windows.tolist()]
