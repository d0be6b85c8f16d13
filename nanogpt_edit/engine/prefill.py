"""Prompts through the model, once each, before anything is written after them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache

PREFILL_TOKENS = 16_384  # prompt tokens run through the model at once
ENOUGH_TOKENS = 512  # with so many a CPU multiplies about as fast as with more
PADDING = 1 / 8  # of a part's own tokens, from which a further part is cheaper there


@dataclass(frozen=True)
class Prefilled:
    """P prompts after the model has read them."""

    prefix: KVCache
    """Their keys and values, padded on the right."""
    lengths: Tensor
    """(P,)"""
    logits: Tensor
    """(P, V) of what follows the last token of each."""


def prefill(model: GPT, prompts: Sequence[Sequence[int]], dtype: torch.dtype) -> Prefilled:
    """Read `prompts` together, keeping keys and values in `dtype`.

    Raises UserError where logits are not finite.
    """
    rows = [torch.tensor(prompt, device=model.device) for prompt in prompts]
    token_ids, lengths = (
        pad_sequence(rows, batch_first=True),
        torch.tensor(list(map(len, prompts)), device=model.device),
    )
    prefix = KVCache(model.config, rows=len(prompts), capacity=token_ids.shape[1], device=model.device, dtype=dtype)
    states = model.hidden(token_ids, view=prefix, columns=(lengths - 1)[:, None])
    logits = model.logits(states[:, 0])
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite numbers; its weights are damaged.")
    return Prefilled(prefix, lengths, logits)


def parts_of_like_length(prompts: Mapping[int, Sequence[int]], device: torch.device) -> Iterator[list[int]]:
    """The numbers of `prompts`, those of like length together, at most PREFILL_TOKENS padded tokens at once; on a CPU
    fewer where they would be filled up much."""
    part, own = list[int](), 0
    for number in sorted(prompts, key=lambda number: len(prompts[number])):
        padded = (len(part) + 1) * len(prompts[number])
        padding = padded - own - len(prompts[number])
        fills_up = device.type == "cpu" and own >= ENOUGH_TOKENS and padding > PADDING * own
        if part and (padded > PREFILL_TOKENS or fills_up):
            yield part
            part, own = [], 0
        part.append(number)
        own += len(prompts[number])
    if part:
        yield part
