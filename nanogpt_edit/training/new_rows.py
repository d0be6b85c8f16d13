"""The rows of tokens that were added to a vocabulary, fitted before the first step of SFT; nothing else moves.

A row that is added starts at the mean of the others, where its token is as unlikely as any, and a step of SFT moves its
logit by about a tenth: a model would learn the style of the problems long before it writes a token of their form. With
the body as it is, the best rows of the head are a convex problem. s_n are the states before the head, Z_n the sum of
exp(logit) over all other tokens, both made once; the rows w_k of the new tokens minimise

    mean_n [log(Z_n + Σ_k exp(w_k·s_n)) − log(exp(w_k·s_n) where k comes next, Z_n where no new token does)]
    + RIDGE Σ_k |w_k − mean|² / unit²

over all tokens of some samples, those of the questions too, where no new token may come up. `mean` is the mean of the
other rows. Where the embedding is the same matrix, `unit` is their mean distance from it: a row much longer than the
others would drown what stands around it when it is read. Elsewhere it is what moves a typical logit by LOGIT. L-BFGS
(Liu and Nocedal 1989) finds the minimum in a second; what takes time is to run the samples. Rows that are read change
the states behind the new tokens, so that there the fit is made again with them in place; an embedding of its own stays
as it is.

The rows before the fit play no part in it, so that it gives the same bits when it is made once more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.common.terminal import progress, say
from nanogpt_edit.data.batch import micro_batches
from nanogpt_edit.data.samples import Sample
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.head import chunks, head_product
from nanogpt_edit.model.lineage import Kind
from nanogpt_edit.model.ragged import packed_states
from nanogpt_edit.model.tokenizer import tokenizer_of

RIDGE = 3e-4
LOGIT = 5.0
ROUNDS = 2  # where head and embedding are one matrix
ITERATIONS = 100  # of L-BFGS, at most
TRAINED: tuple[Kind, ...] = ("fitted", "pretrained", "sft", "grpo")


def untrained_rows(model: GPT) -> tuple[int, ...]:
    """The rows of tokens that the vocabulary was given and that nothing has trained since, as the lineage records."""
    found: tuple[int, ...] = ()
    for done in model.lineage:
        if done.kind == "vocabulary":
            found = done.new_rows or ()
        elif done.kind in TRAINED:
            found = ()
    return found


@dataclass(frozen=True)
class Seen:
    """What the fit needs to know of N tokens that were read."""

    states: Tensor
    """(N, D) float32, before the head."""
    others: Tensor
    """(N,) log Σ exp(logit) over all tokens but the new ones."""
    next_new: Tensor
    """(N,) which of the K new tokens comes next; K where none does."""

    @property
    def size(self) -> Tensor:
        """Root mean square of a state's numbers: what a row of length 1 adds to a logit."""
        return self.states.square().mean().sqrt()

    def loss(self, rows: Tensor) -> Tensor:
        """Mean nats over all N of whether, and which, new token comes next: rows (K, D) -> scalar."""
        logits = torch.cat((self.states @ rows.T, self.others[:, None]), dim=1)  # (N, K + 1)
        return torch.nn.functional.cross_entropy(logits, self.next_new)

    def probability(self, rows: Tensor) -> tuple[float, float]:
        """The mean probability of a new token where it comes next, and of all of them where none does."""
        shares = torch.cat((self.states @ rows.T, self.others[:, None]), dim=1).softmax(dim=1)
        is_new = self.next_new < len(rows)
        right = shares[is_new].gather(1, self.next_new[is_new, None])
        return right.mean().item(), (1 - shares[~is_new, -1]).mean().item()


def fit_new_rows(model: GPT, samples: Sequence[Sample], rows: Sequence[int], *, max_tokens: int) -> None:
    """Fit `rows` of the head, and of the embedding where it is the same matrix, to `samples`, and say how well it went.

    `max_tokens` go through the model at once. Every other weight stays as it is, bit for bit.
    """
    begun, was_training = time.perf_counter(), model.training
    new, weight = torch.tensor(rows, device=model.device), model.head_weight.detach()
    model.eval()
    with torch.autocast(model.device.type, enabled=False):
        known = weight[: min(rows)]
        weight[new] = mean = known.mean(dim=0)
        for _ in range(ROUNDS if model.head is None else 1):
            seen = look(model, samples, new, max_tokens=max_tokens)
            unit = (known - mean).norm(dim=1).mean() if model.head is None else LOGIT / seen.size
            weight[new] = fitted = minimise(seen, mean, unit, count=len(rows))
        right, wrong = seen.probability(fitted)
    model.train(was_training)
    tokens = " ".join(map(tokenizer_of(model).token_text, rows))
    say(
        f"sft: the rows of {tokens} are fitted on {len(samples)} problems, in {time.perf_counter() - begun:.1f} s: "
        f"probability {right:.2f} where they come next, {wrong:.1e} elsewhere."
    )


def look(model: GPT, samples: Sequence[Sample], new: Tensor, *, max_tokens: int) -> Seen:
    """Run all of `samples` through the model, as it is."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    batches = list(micro_batches(samples, max_tokens=max_tokens))
    with torch.no_grad(), progress("sft: fitting new rows", len(batches), "batches", brief=True) as bar:
        for batch in bar.counted(batches):
            batch = batch.to(model.device)
            is_read, is_predicted = batch.neighbours()
            states = packed_states(model, batch.token_ids[is_read], batch.lengths - 1).float()
            matches = batch.token_ids[is_predicted, None] == new
            next_new = torch.where(matches.any(1), matches.int().argmax(1), len(new))
            parts.append((states, log_sum_of_others(states, model.head_weight, new), next_new))
    return Seen(*(torch.cat(part) for part in zip(*parts, strict=True)))


def log_sum_of_others(states: Tensor, weight: Tensor, new: Tensor) -> Tensor:
    """(N,) log Σ exp(logit) over all rows of `weight` but `new`."""
    sums = []
    for part in chunks(states, weight):
        logits = head_product(states[part], weight).float()
        sums.append(logits.index_fill_(1, new, -torch.inf).logsumexp(dim=1))
    return torch.cat(sums)


def minimise(seen: Seen, mean: Tensor, unit: Tensor, *, count: int) -> Tensor:
    """The `count` rows (K, D) with the least loss."""
    away = mean.new_zeros(count, len(mean), requires_grad=True)  # from the mean, in units
    optimizer = torch.optim.LBFGS([away], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = seen.loss(mean + away * unit) + RIDGE * away.square().sum()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return mean + away.detach() * unit
