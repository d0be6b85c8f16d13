"""The residuals of an edit, improved through the weights they are written into.

MEMIT finds every fact's value as if it were added at one token only, and then writes all of them as one ΔW per layer.
In a small model, whose keys resemble each other, that ΔW also fires at other tokens and for other facts: the values are
not what comes out, and the text around them is disturbed. Here ΔW = R Q keeps its right factors Q (the keys it answers
to) while the residuals R of all facts and layers are descended together, on whole texts, with what they do to ordinary
text as a price:

    Σ_facts max(0, NLL(target | contexts) + log stop_probability)
        + refine_weight · Σ_layers E‖ΔW k‖² + refine_kl · KL(before ‖ after the edit, on ordinary text)

The middle term is exact and costs nothing: E‖ΔW k‖² = tr(R (Q C Qᵀ) Rᵀ) with C = E[k kᵀ] of the text. It counts every
change alike; the KL, on a few rows of text per step, only those that the model's predictions feel.

Shapes: N facts, M columns of all of them (a fact's contexts move together), J target tokens of their texts, T tokens of
a row of ordinary text, D model width, F MLP width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.common.terminal import progress
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, in_chunks
from nanogpt_edit.editing.methods.memit import EditedLayer, LayerSolver
from nanogpt_edit.editing.suffixes import Suffixes, clean_runs, texts_of, token_weight
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.head import nll_and_slope
from nanogpt_edit.model.sites import SiteKey, patch

CHUNK_TOKENS = 16_384  # tokens in one forward pass; bounds memory, does not change the result
POOL_ROWS, KL_ROWS = 1024, 32  # rows of ordinary text kept, and looked at in a step
POOL_NUMBERS = 2**26  # most log-probabilities kept of them


@dataclass(frozen=True)
class Update:
    """One layer's ΔW = left · right, which the model's weights already hold, and C of its ordinary keys; float64."""

    left: Tensor
    """(D, M)."""
    right: Tensor
    """(M, F)."""
    keys: Tensor
    """(F, M)."""
    owner: Tensor
    """(M,) whose fact's each column is."""
    covariance: Tensor
    """(F, F)."""


@dataclass(frozen=True)
class OrdinaryText:
    """Rows of text and what the model makes of them before the edit."""

    states: Tensor
    """(rows, T, D) entering the first edited layer."""
    logprobs: Tensor
    """(rows, T, V)."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: GPT, blocks: Tensor, config: EditConfig) -> OrdinaryText:
        """Some rows of `blocks` (N, T) of token ids, seeded; fewer of them where the vocabulary is large."""
        room = max(1, min(POOL_ROWS, POOL_NUMBERS // (blocks.shape[1] * model.config.vocab_size)))
        chosen = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(config.seed))[:room]
        states = model.run_blocks(model.embed_tokens(blocks[chosen].to(model.device)), stop=config.layers[0])
        top = model.run_blocks(states, start=config.layers[0])
        return cls(states, model.logits(model.final(top)).float().log_softmax(-1))

    def kl(self, model: GPT, rows: Tensor, first: int) -> Tensor:
        """KL(before ‖ now) in nats per token, over `rows`."""
        now = model.logits(model.final(model.run_blocks(self.states[rows], start=first))).float().log_softmax(-1)
        before = self.logprobs[rows]
        return (before.exp() * (before - now)).sum(-1).mean()


def refine_batch(
    model: GPT,
    facts: Sequence[LocatedFact],
    config: EditConfig,
    edited: Mapping[int, EditedLayer],
    solvers: Mapping[int, LayerSolver],
    text: OrdinaryText | None,
) -> None:
    """Descend on the residuals of the batch just solved for, and leave the better ones in the model."""
    per_fact = [len(fact.contexts) if not config.published else 1 for fact in facts]
    owner = torch.arange(len(facts)).repeat_interleave(torch.tensor(per_fact))
    updates = {
        layer: Update(each.left[-1], each.right[-1], each.keys[-1], owner, solvers[layer].covariance)
        for layer, each in edited.items()
    }
    for layer, left in refine_residuals(model, facts, updates, config, text).items():
        edited[layer].left[-1] = left
        edited[layer].write()


def refine_residuals(
    model: GPT,
    facts: Sequence[LocatedFact],
    updates: Mapping[int, Update],
    config: EditConfig,
    text: OrdinaryText | None = None,
) -> dict[int, Tensor]:
    """The better left factors (D, M), float64, by layer; `text` is needed for the KL. The weights are not touched."""
    layers = {layer: _LayerResiduals.of(update, model) for layer, update in updates.items()}
    texts = [_FactTexts.of(model, chunk, first=min(updates)) for chunk in in_chunks(facts, CHUNK_TOKENS)]
    shifts = {
        layer: each.start.new_zeros(len(each.start), len(each.right), requires_grad=True)
        for layer, each in layers.items()
    }
    optimizer = torch.optim.Adam(shifts.values(), lr=config.learning_rate)
    enough = -math.log(config.stop_probability)
    generator = torch.Generator().manual_seed(config.seed)
    with progress("refining", config.refine_steps) as bar, torch.enable_grad():
        for step in range(config.refine_steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 - step / config.refine_steps)
            optimizer.zero_grad()
            price = sum((each.price(shifts[layer]) for layer, each in layers.items()), torch.zeros(()))
            (config.refine_weight * price).backward()
            missing = 0.0
            for part in texts:
                with _with_shifts(model, layers, shifts):
                    nll, states, slope = part.nll(model)
                wanting = (nll > enough)[part.texts.fact]
                states.backward((slope * wanting[:, None]).to(states.dtype), inputs=list(shifts.values()))
                missing += float((nll - enough).clamp_min(0).sum())
            if text is not None:
                chosen = torch.randint(len(text.states), (KL_ROWS,), generator=generator)
                with _with_shifts(model, layers, shifts):
                    disturbed = config.refine_kl * text.kl(model, chosen, min(updates))
                disturbed.backward(inputs=list(shifts.values()))
            optimizer.step()
            bar.update(step + 1, missing=missing / len(facts), disturbance=float(price.detach()))
    return {
        layer: updates[layer].left + (shift.detach() @ layers[layer].spread).to(updates[layer].left)
        for layer, shift in shifts.items()
    }


@dataclass(frozen=True)
class _LayerResiduals:
    """A layer's factors, a fact's columns moved together, scaled so that its own keys answer with 1: a shift is then in
    the units of the stream."""

    start: Tensor  # (D, M) R as it is in the weights
    gram: Tensor  # (M, M) Q C Qᵀ
    right: Tensor  # (N, F) what a fact's shift is multiplied by: the sum of its rows of Q, scaled
    spread: Tensor  # (N, M) how a fact's shift is written into its columns of R

    @classmethod
    def of(cls, update: Update, model: GPT) -> _LayerResiduals:
        owner = update.owner.to(update.right.device)
        spread = torch.nn.functional.one_hot(owner).T.to(update.right)  # (N, M)
        answers = (spread @ update.right @ update.keys * spread).sum(1) / spread.sum(1)  # at its own keys, on average
        answers = answers * spread.sum(1).sqrt()  # of the keys as they are: the columns are divided by √M of the fact
        spread = spread / torch.where(answers.abs() > 1e-6, answers, torch.ones_like(answers))[:, None]
        gram = update.right @ update.covariance.to(update.right) @ update.right.T
        made = (update.left, gram, spread @ update.right, spread)
        return cls(*(matrix.to(model.device, torch.float32) for matrix in made))

    def price(self, shift: Tensor) -> Tensor:
        """E‖ΔW k‖² over ordinary text."""
        residuals = self.start + shift @ self.spread
        return (residuals @ self.gram * residuals).sum().cpu()


@dataclass(frozen=True)
class _FactTexts:
    """Some facts' whole texts, run up to the first edited layer."""

    texts: Suffixes
    weight: Tensor  # (J,) of each token read

    @classmethod
    def of(cls, model: GPT, facts: Sequence[LocatedFact], *, first: int) -> _FactTexts:
        whole = texts_of(facts, from_subject=False)
        texts = Suffixes.of(model, whole, clean_runs(model, whole, last_layer=first - 1))
        return cls(texts, token_weight(facts).to(model.device)[texts.fact])

    def nll(self, model: GPT) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) nats per target token, averaged over contexts; the states (J, D) they come from, and the slopes."""
        states = self.texts.states(model)
        each, slope = nll_and_slope(states.detach(), model.head_weight, self.texts.wanted)
        nll = each.new_zeros(int(self.texts.fact.max()) + 1).index_add(0, self.texts.fact, self.weight * each)
        return nll, states, self.weight[:, None] * slope


def _with_shifts(
    model: GPT, layers: Mapping[int, _LayerResiduals], shifts: Mapping[int, Tensor]
) -> AbstractContextManager[None]:
    """Inside: every edited layer's MLP also adds shift · Q k; in two products, or by their own where N is large."""
    changes: dict[SiteKey, Callable[[Tensor], Tensor]] = {}
    for layer, each in layers.items():
        seen: list[Tensor] = []
        factors = [each.right, shifts[layer]]  # (N, F), (D, N)
        if each.right.numel() + shifts[layer].numel() > len(shifts[layer]) * each.right.shape[1]:
            factors = [shifts[layer] @ each.right]  # (D, F)

        def look(key: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen[:] = [key]
            return key

        def add(out: Tensor, seen: list[Tensor] = seen, factors: list[Tensor] = factors) -> Tensor:
            added = seen[0]
            for factor in factors:
                added = added @ factor.to(out.dtype).T
            return out + added

        changes |= {("mlp_key", layer): look, ("mlp_out", layer): add}
    return patch(model, changes)
