"""The target values v*: what the residual stream must hold at a subject's last token for the model to say the target.

MEMIT's optimisation (Meng et al. 2023, section 4.2), for all facts in one batch. δ is added to `resid_post` of the last
edited layer at the subject's last token and minimises

    NLL(target | contexts) + kl_coef · KL("{subject} is a") + weight_decay · ‖δ‖ / ‖h‖²,   ‖δ‖ ≤ clamp · ‖h‖

Differences from the authors' code: nothing that δ cannot reach is computed twice (the blocks below the last edited
layer, and in the blocks above it the keys and values of the tokens before the subject's last one, are made once);
logits are taken at target positions only; each fact stops on its own; the best δ seen is kept, not the last.

Shapes: N facts, C contexts (and one row more for "{subject} is a": R = C + 1), T longest row, P longest text before a
subject's last token, Q longest text from there on, J longest target, D model width, K heads, E head width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nanogpt_edit.edit.config import EditConfig
from nanogpt_edit.edit.contexts import LocatedFact, pad_rows, tokenizer_of
from nanogpt_edit.edit.prefix import FrozenPrefix, Recorder, suffix_mask
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.progress import Progress, progress

CHUNK_TOKENS = 16_384  # tokens of all rows optimised together; bounds memory, does not change the result
BUSY_TOKENS = 512  # tokens per step from which a larger product is hardly faster
LEAVE_SHARE = 1 / 8  # finished facts leave the batch once they are this share of it
BETAS = (0.9, 0.999)  # Adam's


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


def optimise_values(
    model: GPT, facts: Sequence[LocatedFact], config: EditConfig, *, chunk_tokens: int = CHUNK_TOKENS
) -> TargetValues:
    """v* of every fact, at `resid_post` of `config.layers[-1]`. The model's weights are not touched."""
    order = sorted(range(len(facts)), key=lambda i: (_longest_suffix(facts[i]), _longest_row(facts[i])))
    parts: list[TargetValues] = []
    with progress("values", len(facts), "facts") as bar:
        for chunk in _chunks([facts[i] for i in order], chunk_tokens):
            parts.append(_descend(model, _prepare(model, chunk, last_layer=config.layers[-1]), config, bar))
    back = sorted(range(len(order)), key=order.__getitem__)
    return TargetValues(
        values=torch.cat([part.values for part in parts])[back],
        probabilities=tuple([p for part in parts for p in part.probabilities][i] for i in back),
        shifts=tuple([s for part in parts for s in part.shifts][i] for i in back),
        steps=tuple([s for part in parts for s in part.steps][i] for i in back),
    )


def _longest_row(fact: LocatedFact) -> int:
    return max(len(row.token_ids) for row in (*fact.contexts, fact.essence)) + len(fact.target_ids)


def _longest_suffix(fact: LocatedFact) -> int:
    """Tokens from the subject's last one on: what is run in every step."""
    ends = [len(row.token_ids) - row.subject_last for row in (*fact.contexts, fact.essence)]
    return max(ends) + len(fact.target_ids) - 1


def _chunks(facts: Sequence[LocatedFact], chunk_tokens: int) -> list[list[LocatedFact]]:
    """Facts, ascending in suffix, in groups whose padded rows hold at most `chunk_tokens` tokens (or one fact).

    A group is also closed when its suffixes hold enough tokens to keep a matrix product busy and the next fact's is
    longer: the shorter ones are padded to it.
    """
    chunks: list[list[LocatedFact]] = []
    longest_row = 0
    for fact in facts:
        rows = len(fact.contexts) + 1
        longest_row = max(longest_row, _longest_row(fact))
        full = chunks and longest_row * rows * (len(chunks[-1]) + 1) > chunk_tokens
        if chunks and not full and _longest_suffix(fact) > (shortest := _longest_suffix(chunks[-1][0])):
            full = shortest * rows * len(chunks[-1]) >= BUSY_TOKENS
        if not chunks or full:
            chunks.append([])
            longest_row = _longest_row(fact)
        chunks[-1].append(fact)
    return chunks


@dataclass(frozen=True)
class _Rows:
    """All that the loss needs of some facts; every tensor has the facts as its first dimension."""

    h: Tensor  # (N, D) float32, where δ is added, in the bare prompt
    suffix: Tensor  # (N, R, Q, D) resid_post of the last edited layer from the subject's last token on
    positions: Tensor  # (N, R, Q)
    mask: Tensor  # (N, R, 1, Q, P + Q)
    prefix: Tensor  # (N, R, 2 · layers above, K, P, E) keys and values of what stands before
    target_ids: Tensor  # (N, J)
    target_mask: Tensor  # (N, J)
    target_at: Tensor  # (N, C, J) offset into the suffix of the token that predicts target token j
    essence_at: Tensor  # (N,) the same for the last token of "{subject} is a"
    clean_essence: Tensor  # (N, V) log-probabilities there, without δ

    def select(self, facts: Tensor) -> _Rows:
        return _Rows(**{field.name: getattr(self, field.name)[facts] for field in fields(self)})

    def states(self, model: GPT, delta: Tensor) -> Tensor:
        """(N, R, J, D) states that predict the targets (and, in the last row, end the essence) with δ (N, D) added at
        the subject's last token."""
        n, rows, _, width = self.suffix.shape
        ends = self.essence_at[:, None, None].expand(-1, 1, self.target_at.shape[2])
        columns = torch.cat((self.target_at, ends), dim=1).flatten(0, 1)  # (N·R, J)
        layers = self.prefix.shape[2] // 2
        moved = self.suffix[:, :, :1] + delta[:, None, None].to(self.suffix.dtype)
        x = torch.cat((moved, self.suffix[:, :, 1:]), dim=2).flatten(0, 1)  # (N·R, Q, D)
        start = model.config.n_layer - layers
        x = model.run_blocks(
            x,
            start=start,
            cache=FrozenPrefix(self.prefix.flatten(0, 1), first_layer=start),
            position_ids=self.positions.flatten(0, 1),
            attention_mask=self.mask.flatten(0, 1),
            columns=columns,
        )
        return x.view(n, rows, -1, width)

    def losses(self, model: GPT, delta: Tensor) -> tuple[Tensor, Tensor]:
        """NLL per target token, averaged over contexts, and KL(with δ ‖ without) on the essence; nats, each (N,)."""
        states = self.states(model, delta)
        real = self.target_mask[:, None].expand_as(self.target_at)  # (N, C, J)
        fact = real.nonzero()[:, 0]  # (all target tokens,)
        logits = model.logits(model.final(states[:, :-1][real])).float()  # (all target tokens, V)
        wanted = self.target_ids[:, None].expand_as(self.target_at)[real]
        logprobs = logits.gather(-1, wanted[:, None]).squeeze(-1) - logits.logsumexp(-1)
        nll = -torch.zeros_like(delta[:, 0]).index_add(0, fact, logprobs) / real.sum((1, 2))
        essence = model.logits(model.final(states[:, -1, 0])).float().log_softmax(-1)  # (N, V)
        return nll, (essence.exp() * (essence - self.clean_essence)).sum(-1)


@torch.no_grad()
def _prepare(model: GPT, facts: Sequence[LocatedFact], *, last_layer: int) -> _Rows:
    """Run all rows once, clean, and keep what the losses need."""
    device, pad_id, contexts = model.device, tokenizer_of(model).pad_id, len(facts[0].contexts)
    shape = (len(facts), contexts + 1)
    rows = [[*[(row, fact.target_ids[:-1]) for row in fact.contexts], (fact.essence, ())] for fact in facts]
    flat = [(row, (*row.token_ids, *target)) for of_fact in rows for row, target in of_fact]
    token_ids = pad_rows([tokens for _, tokens in flat], pad_id=pad_id, device=device)
    subject = torch.tensor([row.subject_last for row, _ in flat], device=device)  # (N·R,)
    prefix = int(subject.max())
    length = max(len(tokens) - row.subject_last for row, tokens in flat)

    seen = model.run_blocks(model.embed_tokens(token_ids), stop=last_layer + 1)  # (N·R, T, D)
    recorder = Recorder(columns=prefix)
    top = model.run_blocks(seen, start=last_layer + 1, cache=recorder)
    at = (subject[:, None] + torch.arange(length, device=device)).clamp_max(seen.shape[1] - 1)  # (N·R, Q)
    suffix = seen.gather(1, at[..., None].expand(-1, -1, seen.shape[2]))
    ends = torch.tensor([len(fact.essence.token_ids) - 1 for fact in facts], device=device)
    essence = top.unflatten(0, shape)[torch.arange(len(facts), device=device), -1, ends]

    longest = max(len(fact.target_ids) for fact in facts)
    ahead = [[len(row.token_ids) - 1 - row.subject_last for row in fact.contexts] for fact in facts]
    offsets = torch.tensor(ahead, device=device)[..., None] + torch.arange(longest, device=device)
    lengths = torch.tensor([len(fact.target_ids) for fact in facts], device=device)
    return _Rows(
        h=suffix.unflatten(0, shape)[:, 0, 0].float(),
        suffix=suffix.unflatten(0, shape),
        positions=at.unflatten(0, shape),
        mask=suffix_mask(subject, prefix=prefix, length=length).unflatten(0, shape),
        prefix=recorder.stacked(like=seen, config=model.config).unflatten(0, shape),
        target_ids=pad_rows([fact.target_ids for fact in facts], pad_id=pad_id, device=device),
        target_mask=torch.arange(longest, device=device) < lengths[:, None],
        target_at=offsets.clamp_max(length - 1),
        essence_at=ends - torch.tensor([fact.essence.subject_last for fact in facts], device=device),
        clean_essence=model.logits(model.final(essence)).float().log_softmax(-1),
    )


def _descend(model: GPT, rows: _Rows, config: EditConfig, bar: Progress) -> TargetValues:
    """Adam on δ; a fact that has reached its probability stays where it is and soon leaves the batch."""
    n, device, scale = len(rows.h), rows.h.device, rows.h.norm(dim=-1)
    delta, first, second = (torch.zeros_like(rows.h) for _ in range(3))  # δ and Adam's moments
    best, best_loss, best_nll = torch.zeros_like(delta), torch.full_like(scale, torch.inf), torch.zeros_like(scale)
    steps = torch.zeros(n, dtype=torch.long, device=device)
    batch, alive, picked = torch.arange(n, device=device), torch.ones(n, dtype=torch.bool, device=device), rows
    for step in range(1, config.steps + 1):
        with torch.enable_grad():
            tried = delta[batch].requires_grad_()
            nll, kl = picked.losses(model, tried)
            loss = nll + config.kl_coef * kl + config.weight_decay * tried.norm(dim=-1) / scale[batch] ** 2
            (slope,) = torch.autograd.grad(loss.sum(), tried)
        with torch.no_grad():
            better = alive[batch] & (loss < best_loss[batch])
            best[batch[better]], best_loss[batch[better]] = tried[better], loss[better]
            best_nll[batch[better]] = nll[better]
            steps[batch[alive[batch]]] = step
            alive[batch] &= (-nll).exp() < config.stop_probability
            left = int(alive.sum())
            bar.update(bar.done, p=float((-best_nll).exp().mean()), left=float(left))
            if left == 0:
                break
            first[batch] = BETAS[0] * first[batch] + (1 - BETAS[0]) * slope
            second[batch] = BETAS[1] * second[batch] + (1 - BETAS[1]) * slope**2
            stride = (first / (1 - BETAS[0] ** step)) / ((second / (1 - BETAS[1] ** step)).sqrt() + 1e-8)
            moved = delta - config.learning_rate * stride
            moved *= (config.clamp * scale / moved.norm(dim=-1).clamp_min(1e-12)).clamp_max(1.0)[:, None]
            delta = torch.where(alive[:, None], moved, delta)
            if left <= (1 - LEAVE_SHARE) * len(batch):
                batch = alive.nonzero().squeeze(1)
                picked = rows.select(batch)
    bar.update(bar.done + n, p=float((-best_nll).exp().mean()))
    return TargetValues(
        values=(rows.h + best).cpu(),
        probabilities=tuple((-best_nll).exp().tolist()),
        shifts=tuple((best.norm(dim=-1) / scale).tolist()),
        steps=tuple(steps.tolist()),
    )
