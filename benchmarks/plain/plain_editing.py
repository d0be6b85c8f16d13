"""Editing as the published implementation does it: what `edit_speed.py` measures against, and the slow twin that the
tests hold the package to.

The loops follow the authors' code for MEMIT (Meng et al. 2023) in what they compute and how often: one fact at a time
through all blocks, logits of every position, one pass over the corpus per layer. They run on this package's model, so
kernels, attention and thread count are the same on both sides, and they are written without waste of their own: nothing
is computed that the published loops do not compute, gradients are taken for δ only, and a pass stops at the layer it is
made for. Where the package does something of its own (a column for every context, the KL at the prompt's end) the loops
do it, too, and with `preset = "published"` they do what the authors do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, pad_rows
from nanogpt_edit.editing.patch import edited_weight
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import capture, patch


def values(model: GPT, facts: Sequence[LocatedFact], config: EditConfig) -> Tensor:
    """v* (N, D): for every fact, `steps` forward and backward passes of all its rows through the whole model."""
    return torch.stack([_value(model, fact, config) for fact in facts])


def _value(model: GPT, fact: LocatedFact, config: EditConfig) -> Tensor:
    layer, n = config.layers[-1], len(fact.contexts)
    rows = [*(row for row in fact.contexts), fact.essence]
    token_ids = pad_rows(
        [(*row.token_ids, *fact.target_ids[:-1]) if i < n else row.token_ids for i, row in enumerate(rows)],
        pad_id=0,
        device=model.device,
    )
    everyone = torch.arange(len(rows))
    subject = torch.tensor([row.subject_last for row in rows])
    targets = torch.full((n, token_ids.shape[1]), -100)
    for i, row in enumerate(fact.contexts):
        at = len(row.token_ids) - 1
        targets[i, at : at + len(fact.target_ids)] = torch.tensor(fact.target_ids)
    mask = (targets != -100).float()
    essence_at = fact.essence.subject_last if config.published else len(fact.essence.token_ids) - 1
    delta = torch.zeros(model.config.n_embd, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=config.learning_rate)
    clean_essence: Tensor | None = None
    start: Tensor | None = None

    def add(state: Tensor) -> Tensor:
        nonlocal start
        if start is None:
            start = state[0, subject[0]].detach().clone()
        moved = state.clone()
        moved[everyone, subject] += delta
        return moved

    for step in range(config.steps):
        optimizer.zero_grad()
        with patch(model, {("resid_post", layer): add}):
            logits = model(token_ids)
        logprobs = logits.log_softmax(-1)
        essence = logprobs[-1, essence_at]
        if clean_essence is None:
            clean_essence = essence.detach().clone()
        chosen = logprobs[:n].gather(-1, targets.clamp_min(0)[..., None]).squeeze(-1)
        nll = -(chosen * mask).sum(1) / len(fact.target_ids)
        kl = torch.nn.functional.kl_div(clean_essence, essence, log_target=True, reduction="sum")
        assert start is not None
        loss = nll.mean() + config.kl_coef * kl + config.weight_decay * delta.norm() / start.norm() ** 2
        if step + 1 == config.steps or (config.published and float(loss.detach()) < 0.05):
            break
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            delta *= (config.clamp * start.norm() / delta.norm()).clamp_max(1.0)
    assert start is not None
    return start + delta.detach()


@torch.no_grad()
def keys(model: GPT, facts: Sequence[LocatedFact], layer: int, *, rows_at_once: int = 128) -> Tensor:
    """k (M, F) of one layer, of every context: a pass of all of them through the model up to that layer."""
    rows = [row for fact in facts for row in fact.contexts]
    found: list[Tensor] = []
    for first in range(0, len(rows), rows_at_once):
        part = rows[first : first + rows_at_once]
        token_ids = pad_rows([row.token_ids for row in part], pad_id=0, device=model.device)
        with capture(model, [("mlp_key", layer)]) as seen:
            model.run_blocks(model.embed_tokens(token_ids), stop=layer + 1)
        found.append(seen["mlp_key", layer][torch.arange(len(part)), torch.tensor([row.subject_last for row in part])])
    return torch.cat(found)


@torch.no_grad()
def covariance(model: GPT, blocks: Tensor, layer: int, *, batch_tokens: int = 4096) -> Tensor:
    """C (F, F) of one layer: a pass over the corpus up to that layer, outer products summed in float32."""
    total = torch.zeros(model.config.mlp_size, model.config.mlp_size)
    for batch in blocks.split(max(1, batch_tokens // blocks.shape[1])):
        with capture(model, [("mlp_key", layer)]) as seen:
            model.run_blocks(model.embed_tokens(batch), stop=layer + 1)
        key = seen["mlp_key", layer].flatten(0, 1)
        total += key.T @ key
    return total / blocks.numel()


@torch.no_grad()
def memit(
    model: GPT, facts: Sequence[LocatedFact], values: Tensor, config: EditConfig, blocks: Tensor
) -> dict[int, Tensor]:
    """ΔW (D, F) per layer, float64: Algorithm 1 of Meng et al. 2023 for `values` v* (N, D).

    In ascending order every layer takes an equal share of what is still missing at the last one. The model is left as
    it was.
    """
    weights = {layer: edited_weight(model, layer) for layer in config.layers}
    before = {layer: weight.clone() for layer, weight in weights.items()}
    usual = {layer: covariance(model, blocks, layer).double() for layer in config.layers}
    changes: dict[int, Tensor] = {}
    before_it = states(model, facts, config.layers[-1]).double().unflatten(0, (len(facts), -1))
    wanted = before_it + (values.double() - before_it[:, 0])[:, None]  # (N, C, D)
    for index, layer in enumerate(config.layers):
        k = keys(model, facts, layer).double().unflatten(0, (len(facts), -1))  # (N, C, F)
        missing = wanted - states(model, facts, config.layers[-1]).double().unflatten(0, (len(facts), -1))
        if config.published:  # the authors: half the bare prompt, half the mean of the others; its residual
            k, missing = 0.5 * k[:, :1] + 0.5 * k[:, 1:].mean(1, keepdim=True), missing[:, :1]
        k, missing = (each.flatten(0, 1).T / each.shape[1] ** 0.5 for each in (k, missing))
        residual = missing / (len(config.layers) - index)
        changes[layer] = residual @ k.T @ torch.linalg.inv(config.covariance_weight * usual[layer] + k @ k.T)
        weights[layer] += changes[layer].to(weights[layer])
    for layer, weight in weights.items():
        weight.copy_(before[layer])
    return changes


def states(model: GPT, facts: Sequence[LocatedFact], layer: int) -> Tensor:
    """h (M, D): the state after `layer` at the subject's last token of every context."""
    found = []
    for row in (row for fact in facts for row in fact.contexts):
        with capture(model, [("resid_post", layer)]) as seen:
            model(torch.tensor([row.token_ids], device=model.device))
        found.append(seen["resid_post", layer][0, row.subject_last])
    return torch.stack(found)
