"""LocFT-BF (Yang et al. 2025): plain fine-tuning of one matrix, in mini-batches, over epochs.

Editors had been compared with fine-tuning that takes one fact at a time to convergence (depth first), so that a fact is
forgotten for the next. Here all facts are gone through in every epoch (breadth first), in mini-batches, by Adam on one
MLP matrix and nothing else: no bound, no price for other text. A batch whose loss is below 0.01 is not learned from,
and an epoch whose mean is below it is the last, as in the authors' code; behind the answer they learn the end of the
text, which is `full_stop` here. Their matrix is the second of an MLP at 0.2 to 0.7 of the depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nanogpt_edit.common.terminal import progress
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact
from nanogpt_edit.editing.methods.answers import Answers, no_values
from nanogpt_edit.editing.methods.finetune import add_whole, trained
from nanogpt_edit.editing.methods.memit import EditedLayer
from nanogpt_edit.editing.values import TargetValues
from nanogpt_edit.model.gpt import GPT

ENOUGH = 0.01  # nats per target token, from which there is nothing to learn


def locft(
    model: GPT, facts: Sequence[LocatedFact], config: EditConfig, edited: Mapping[int, EditedLayer]
) -> list[TargetValues]:
    """Leave ΔW in the model and in the one layer of `edited`; there are no values, and no keys, of single facts."""
    ((layer, matrix),) = edited.items()
    answers = Answers.of(model, facts, layer=layer)
    with trained(matrix.weight):
        epochs = learn_in_epochs(model, answers, [matrix.weight], config)
    add_whole(matrix, matrix.weight.detach().double() - matrix.original.double())
    return [no_values(nll_in_batches(model, answers, config), steps=epochs, width=model.config.n_embd)]


def learn_in_epochs(model: GPT, answers: Answers, weights: Sequence[Tensor], config: EditConfig) -> int:
    """Adam on `weights` over at most `steps` epochs, each in another order (seeded); how many were taken."""
    adam = torch.optim.Adam(weights, lr=config.ft_learning_rate)
    order, count, epoch = torch.Generator().manual_seed(config.seed), len(answers.lengths), 0
    with progress("fine-tuning", config.steps, "epochs") as bar:
        for epoch in range(1, config.steps + 1):
            total = 0.0
            for rows in torch.randperm(count, generator=order).split(config.ft_batch_size):
                loss = answers.part(rows.to(answers.lengths.device)).nll(model).mean()
                total += float(loss.detach()) * len(rows)
                if float(loss.detach()) < ENOUGH:
                    continue
                for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                    weight.grad = slope
                adam.step()
            bar.update(epoch, loss=total / count)
            if total < ENOUGH * count:
                break
        bar.update(config.steps)
    adam.zero_grad()
    return epoch


@torch.no_grad()
def nll_in_batches(model: GPT, answers: Answers, config: EditConfig) -> Tensor:
    """(N,) nats per target token."""
    rows = torch.arange(len(answers.lengths), device=answers.lengths.device)
    return torch.cat([answers.part(part).nll(model) for part in rows.split(config.ft_batch_size)])
