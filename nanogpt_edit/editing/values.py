"""The target values v*: what the residual stream must hold at a subject's last token for the model to say the target.

MEMIT's optimisation (Meng et al. 2023, section 4.2), for all facts in one batch. δ is added to `resid_post` of the last
edited layer at the subject's last token and minimises

    NLL(target | contexts) + kl_coef · KL("{subject} is a") + weight_decay · ‖δ‖ / ‖h‖²,   ‖δ‖ ≤ clamp · ‖h‖

Differences from the authors' code: only what δ can reach is computed in a step (`suffixes`), logits are taken at target
positions only and their slopes without a graph (`model/head`). And in what is found: steps are Polyak's instead of
Adam's where `descent` says so; the KL is taken where the prompt "{subject} is a" ends, theirs at the subject's last
token in it; a fact stops once its target has `stop_probability`, theirs once the whole loss is below 0.05; the best δ
seen is kept, theirs is the last (`preset = "published"`).

Shapes: N facts, C contexts, M target tokens of all facts and contexts, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_edit.common.device import autocast
from nanogpt_edit.common.memory import give_back
from nanogpt_edit.common.terminal import Progress, progress
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, first_rows, in_chunks
from nanogpt_edit.editing.suffixes import Suffixes, Text, clean_runs, texts_of, token_weight
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.head import kl_and_slope, kl_only, nll_and_slope, nll_only

CHUNK_TOKENS = 4096  # tokens of all rows optimised together; bounds memory, does not change the result
CHUNK_TOKENS_ON_GPU = 16_384
PUBLISHED_LOSS = 0.05  # of NLL, KL and weight decay together, below which the authors stop
FOUND = 0.8  # probability from which a fact needs no wider clamp, and no further round
LONGEST_STEP = 0.3  # of ‖h‖, where the slope is so even that Polyak's would be longer; half of it does as well

Move = Callable[[Tensor, Tensor], None]
"""Moves δ, given the losses (N,) and their slopes (N, D) there."""


@dataclass(frozen=True)
class TargetValues:
    """What the optimisation found, one entry per fact."""

    values: Tensor
    """v*, (N, D) float32 on the CPU."""
    probabilities: tuple[float, ...]
    """Geometric mean probability of the target's tokens over the contexts, at the δ that was kept."""
    shifts: tuple[float, ...]
    """‖δ‖ / ‖h‖; equal to `clamp` where the bound was hit."""
    steps: tuple[int, ...]
    """Steps taken until the fact stopped."""

    @classmethod
    def joined(cls, parts: Sequence[TargetValues]) -> TargetValues:
        """Those of all facts of the parts, in order."""
        return cls(
            values=torch.cat([part.values for part in parts]),
            probabilities=tuple(p for part in parts for p in part.probabilities),
            shifts=tuple(s for part in parts for s in part.shifts),
            steps=tuple(s for part in parts for s in part.steps),
        )

    def replaced(self, better: Mapping[int, TargetValues]) -> TargetValues:
        """With those of some facts (one each) in the place of their own."""
        return TargetValues.joined([better.get(i) or self.part(i, i + 1) for i in range(len(self.steps))])

    def part(self, first: int, end: int) -> TargetValues:
        """Those of facts `first` to `end` − 1."""
        rows = slice(first, end)
        return TargetValues(self.values[rows], self.probabilities[rows], self.shifts[rows], self.steps[rows])


def optimise_values(
    model: GPT, facts: Sequence[LocatedFact], config: EditConfig, *, chunk_tokens: int | None = None
) -> TargetValues:
    """v* of every fact, at `resid_post` of `config.layers[-1]`. The model's weights are not touched."""
    parts: list[TargetValues] = []
    chunk_tokens = chunk_tokens or (CHUNK_TOKENS_ON_GPU if model.device.type == "cuda" else CHUNK_TOKENS)
    precision = "float32" if model.dtype == torch.float64 else config.precision  # autocast leaves float64 as it is
    with progress("values", len(facts), "facts") as bar:
        for chunk in in_chunks(facts, chunk_tokens):
            losses = _Losses.of(
                model, chunk, last_layer=config.layers[-1], essence=config.kl_coef > 0, published=config.published
            )
            with autocast(model.device, precision):  # not of h, which is taken once more when v* is written
                parts.append(_descend(model, losses, config, bar))
            del losses
            give_back()
    return TargetValues.joined(parts)


@dataclass(frozen=True)
class _Losses:
    """All that the loss needs of some facts."""

    h: Tensor  # (N, D) float32, where δ is added, in each fact's first context
    asked: Suffixes  # every context with the target behind it
    weight: Tensor  # (N,) see `token_weight`
    essence: Suffixes | None  # "{subject} is a"
    clean_essence: Tensor  # (texts in essence, V) log-probabilities there, without δ

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: GPT,
        facts: Sequence[LocatedFact],
        *,
        last_layer: int,
        essence: bool = True,
        published: bool = False,
    ) -> _Losses:
        """Run all texts once; without the `essence` there is no KL, `published` takes it where the subject ends."""
        texts = texts_of(facts, from_subject=True)
        runs = clean_runs(model, texts, last_layer=last_layer)
        firsts = first_rows([len(fact.contexts) for fact in facts])
        h = torch.stack([runs[first].suffix[0] for first in firsts]).float()
        asked, weight = Suffixes.of(model, texts, runs), token_weight(facts).to(h.device)
        if not essence:
            return cls(h, asked, weight, essence=None, clean_essence=h)
        ends = [fact.essence.subject_last + 1 if published else None for fact in facts]
        texts = [
            Text(i, fact.essence.token_ids[:end], fact.essence.subject_last, (0,))
            for i, (fact, end) in enumerate(zip(facts, ends, strict=True))
        ]
        read = Suffixes.of(model, texts, clean_runs(model, texts, last_layer=last_layer))
        return cls(h, asked, weight, read, model.logits(read.states(model)).float().log_softmax(-1))

    def select(self, alive: Tensor) -> _Losses:
        """Only the facts where `alive` (N,) is true; the losses of the others are 0."""
        if self.essence is None:
            return replace(self, asked=self.asked.select(alive))
        kept = alive[self.essence.fact]
        return replace(
            self,
            asked=self.asked.select(alive),
            essence=self.essence.select(alive),
            clean_essence=self.clean_essence[kept],
        )

    def at(self, model: GPT, delta: Tensor, *, kl_coef: float) -> tuple[Tensor, Tensor, Tensor]:
        """NLL of every target token (M,), and KL(with δ ‖ without) on the essence (N,), nats; and the slope of NLL per
        token, averaged over contexts, + kl_coef · KL at δ (N, D)."""
        with torch.enable_grad():
            tried = delta.detach().requires_grad_()
            states = self._read(model, tried)
        asked, ends = self._asked_and_essence(states.detach())
        nll, slope = nll_and_slope(asked, model.head_weight, self.asked.wanted)
        slopes, kl = [self.weight[self.asked.fact][:, None] * slope], None
        if self.essence is not None:
            kl, slope = kl_and_slope(ends, model.head_weight, self.clean_essence)
            slopes.append(kl_coef * slope)
        (slope,) = torch.autograd.grad(states, tried, torch.cat(slopes).to(states.dtype))
        return nll, self._kl(kl), slope

    @torch.no_grad()
    def only(self, model: GPT, delta: Tensor) -> tuple[Tensor, Tensor]:
        """NLL and KL as `at` has them, without the slope."""
        asked, ends = self._asked_and_essence(self._read(model, delta))
        nll, kl = nll_only(asked, model.head_weight, self.asked.wanted), None
        if self.essence is not None:
            kl = kl_only(ends, model.head_weight, self.clean_essence)
        return nll, self._kl(kl)

    def _read(self, model: GPT, delta: Tensor) -> Tensor:
        texts = self.asked if self.essence is None else self.asked + self.essence
        return texts.states(model, delta)

    def _asked_and_essence(self, states: Tensor) -> tuple[Tensor, Tensor]:
        count = len(self.asked.fact)
        return states[:count], states[count:]

    def _kl(self, kl: Tensor | None) -> Tensor:
        nothing = self.h.new_zeros(len(self.h))
        return nothing if self.essence is None or kl is None else nothing.index_add(0, self.essence.fact, kl)

    def mean(self, nll: Tensor) -> Tensor:
        """(N,) NLL per target token, averaged over contexts, of `nll` (M,)."""
        return self.h.new_zeros(len(self.h)).index_add(0, self.asked.fact, self.weight[self.asked.fact] * nll)


def _descend(model: GPT, losses: _Losses, config: EditConfig, bar: Progress) -> TargetValues:
    """Down the slope of δ; a fact that has reached its probability stays where it is and leaves the batch."""
    h, scale = losses.h, losses.h.norm(dim=-1)
    delta, best = torch.zeros_like(h), torch.zeros_like(h)  # δ, and the best δ seen
    move = _adam(delta, config) if config.descent == "adam" else _polyak(delta, config, scale)
    best_loss, best_nll = torch.full_like(scale, torch.inf), torch.zeros_like(scale)
    taken = torch.zeros(len(h), dtype=torch.long, device=h.device)
    alive = torch.ones(len(h), dtype=torch.bool, device=h.device)
    running = len(h)
    for step in range(1, config.steps + 1):
        slope = None  # nothing moves after the last step
        if step < config.steps:
            nll, kl, slope = losses.at(model, delta, kl_coef=config.kl_coef)
        else:
            nll, kl = losses.only(model, delta)
        with torch.no_grad():
            nll = losses.mean(nll)
            loss = nll + config.kl_coef * kl + config.weight_decay * delta.norm(dim=-1) / scale**2
            better = alive & ((loss < best_loss) | config.published)
            best[better], best_loss[better], best_nll[better] = delta[better], loss[better], nll[better]
            taken[alive] = step
            alive &= loss >= PUBLISHED_LOSS if config.published else (-nll).exp() < config.stop_probability
            left = int(alive.sum())
            bar.update(bar.done, p=float((-best_nll).exp().mean()), left=float(left))
            if left == 0 or slope is None:
                break
            resting = delta[~alive]
            move(loss, slope + (config.weight_decay / scale**2)[:, None] * F.normalize(delta, dim=-1))
            delta *= (config.clamp * scale / delta.norm(dim=-1).clamp_min(1e-12)).clamp_max(1.0)[:, None]
            delta[~alive] = resting
            if left < running:
                losses, running = losses.select(alive), left
    bar.update(bar.done + len(h), p=float((-best_nll).exp().mean()))
    return TargetValues(
        values=(h + best).cpu(),
        probabilities=tuple((-best_nll).exp().tolist()),
        shifts=tuple((best.norm(dim=-1) / scale).tolist()),
        steps=tuple(taken.tolist()),
    )


def _adam(delta: Tensor, config: EditConfig) -> Move:
    """Adam's steps of `learning_rate` (Kingma and Ba 2015)."""
    adam = torch.optim.Adam([delta], lr=config.learning_rate)

    def move(loss: Tensor, slope: Tensor) -> None:
        delta.grad = slope
        adam.step()

    return move


def _polyak(delta: Tensor, config: EditConfig, scale: Tensor) -> Move:
    """Polyak's steps (1987): down the slope, as far as the loss would need to come to its end if it fell evenly.

    A loss seldom has an end that is known. This one has: it is to be halfway between what a fact stops at and 0.
    """
    end = -math.log((1 + min(config.stop_probability, 1.0)) / 2)

    def move(loss: Tensor, slope: Tensor) -> None:
        steep = slope.norm(dim=-1).clamp_min(1e-12)  # nats per unit of δ
        length = ((loss - end).clamp_min(0.0) / steep).minimum(LONGEST_STEP * scale)
        delta.sub_((length / steep)[:, None] * slope)

    return move
