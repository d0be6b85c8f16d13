"""The engine's slow twin: one row, no cache, one token at a time. What the engine does may only be faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from conftest import tiny_config

from nanogpt_edit.engine.completion import Completion
from nanogpt_edit.engine.sampling import draw_tokens, stream_keys, uniforms_at
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.gpt import GPT

STOPS = frozenset(range(4))  # a tenth of the vocabulary: completions of all lengths


@cache
def bold(family: str, *, block_size: int = 48) -> GPT:
    """A random model of 40 tokens whose weights are large enough that every token before matters to the next."""
    config = replace(tiny_config(family, vocab_size=40, block_size=block_size), n_embd=16, tie_embeddings=False)
    model = GPT(config, seed=0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.dim() == 2 else 1)
    return model


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 40, (length,), generator=generator).tolist() for length in lengths]


@dataclass(frozen=True)
class Text:
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str


@torch.no_grad()
def simple(
    model: GPT, prompt: Sequence[int], *, key: int, sample: int, sampling: Sampling, stops: frozenset[int] = STOPS
) -> Text:
    """What the engine promises, written down as plainly as possible."""
    ids, logprobs = list(prompt), []
    device = model.device
    stream = stream_keys(sampling.seed, torch.tensor([key], device=device), torch.tensor([sample], device=device))
    for step in range(min(sampling.max_new_tokens, model.config.block_size - len(prompt))):
        logits = model(torch.tensor([ids], device=device))[:, -1]
        token, logprob = draw_tokens(logits, uniforms_at(stream, torch.tensor([step], device=device)), sampling)
        ids.append(int(token))
        logprobs.append(float(logprob))
        if ids[-1] in stops:
            return Text(tuple(ids[len(prompt) :]), tuple(logprobs), "stop")
    return Text(tuple(ids[len(prompt) :]), tuple(logprobs), "length")


def assert_same(completion: Completion, expected: Text) -> None:
    assert completion.token_ids == expected.token_ids
    assert completion.finish_reason == expected.finish_reason
    assert completion.logprobs == pytest.approx(expected.logprobs, abs=2e-4)
