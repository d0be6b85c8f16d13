"""The logit lens (nostalgebraist 2020): what the model would say next if its head read an earlier block's state.

Shapes: T tokens, L layers, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nanogpt_edit.evaluation.targets import check_length, join, target_ids
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import capture
from nanogpt_edit.model.tokenizer import tokenizer_of


@dataclass(frozen=True)
class Lens:
    """What every state of a prompt says. Each table has a row per token and a column per layer."""

    tokens: tuple[str, ...]
    target: str
    """The token that is followed: the target's first."""
    best: tuple[tuple[str, ...], ...]
    """The likeliest next token,"""
    p_best: tuple[tuple[float, ...], ...]
    """its probability,"""
    p_target: tuple[tuple[float, ...], ...]
    """and the followed token's."""


@torch.no_grad()
def logit_lens(model: GPT, prompt: str, target: str | None = None) -> Lens:
    """The final norm and the head on `resid_post` of every block and token; the last column is what the model says.

    Without a `target` what the model itself says next is followed. Raises UserError for a target without
    tokens and for a prompt that is too long.
    """
    tokenizer = tokenizer_of(model)
    prompt_ids = tokenizer.encode(prompt.rstrip() if target is None else join(prompt, target)[0])
    check_length(prompt, len(prompt_ids), model)
    layers = range(model.config.n_layer)
    with capture(model, [("resid_post", layer) for layer in layers]) as seen:
        model.run_blocks(model.embed_tokens(torch.tensor([prompt_ids], device=model.device)))
    said = [model.logits(model.final(seen["resid_post", layer][0])).float() for layer in layers]  # L of (T, V)
    own = int(said[-1][-1, : tokenizer.vocab_size].argmax())
    wanted = own if target is None else target_ids(prompt, target, tokenizer)[0]
    best, p_best, p_target = [], [], []  # a column per layer
    for logits in said:
        probabilities = logits[:, : tokenizer.vocab_size].softmax(-1)
        top = probabilities.max(-1)
        best.append([tokenizer.token_text(i) for i in top.indices.tolist()])
        p_best.append(top.values.tolist())
        p_target.append(probabilities[:, wanted].tolist())
    return Lens(
        tokens=tuple(tokenizer.token_text(i) for i in prompt_ids),
        target=tokenizer.token_text(wanted),
        best=tuple(zip(*best, strict=True)),
        p_best=tuple(zip(*p_best, strict=True)),
        p_target=tuple(zip(*p_target, strict=True)),
    )
