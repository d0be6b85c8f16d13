"""A group's prompt is computed once for all its completions, in training too.

The prompts of a batch run through the model once; their keys and values stay in the graph. The completions then run
as rows of their own that look at their prompt's keys and values first. The gradient is that of running every prompt
with each of its completions (a test shows it), at a fraction of the work: with prompts of P tokens, completions of T
and G completions each, (P + G T) token-rows instead of G (P + T).

Shapes: P prompts of at most S tokens, G completions each of at most T tokens, K heads, E head width, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache


class SharedPrefix(KVCache):
    """Stands in for a cache: keeps the prompts' keys and values, then puts them before each completion's own."""

    def __init__(self) -> None:
        self.prompt_keys: list[Tensor] = []
        self.prompt_values: list[Tensor] = []
        self.copies = 0
        self.length = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if not self.copies:
            self.prompt_keys.append(keys)  # (P, K, S, E)
            self.prompt_values.append(values)
            return keys, values
        return self._before(self.prompt_keys[layer], keys), self._before(self.prompt_values[layer], values)

    def _before(self, prompt: Tensor, own: Tensor) -> Tensor:
        repeated = prompt[:, None].expand(-1, self.copies, -1, -1, -1).flatten(0, 1)  # (P G, K, S, E)
        return torch.cat((repeated, own), dim=2)


def completion_states(
    model: GPT, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]
) -> tuple[Tensor, Tensor]:
    """The state that predicts each completion token, and the token.

    `prompts[p]` and `completions[p][g]` are token ids, with the same number G of completions for each prompt ->
    states (N, D) and targets (N,), in the order of prompts, completions, tokens.
    """
    device = model.device
    copies = len(completions[0])
    prompt_ids, prompt_lengths = pad(prompts, device=device)  # (P, S), (P,)
    # At least two columns, so that every call goes through the blocks twice: shards count on it (parallel.py).
    token_ids, lengths = pad([ids for group in completions for ids in group], device=device, at_least=2)  # (P G, T)

    prefix = SharedPrefix()
    prompt_states = model.hidden(prompt_ids, cache=prefix)  # (P, S, D)
    last = prompt_states[torch.arange(len(prompts), device=device), prompt_lengths - 1]  # (P, D)
    states = last.repeat_interleave(copies, dim=0)[:, None]  # predicts each completion's first token

    inputs = token_ids[:, :-1]  # the last token predicts nothing
    prefix.copies = copies
    before = prompt_lengths.repeat_interleave(copies)[:, None]  # (P G, 1)
    steps = torch.arange(inputs.shape[1], device=device)
    sees_prompt = torch.arange(prompt_ids.shape[1], device=device) < before  # (P G, S)
    sees_own = steps[:, None] >= steps  # (T-1, T-1)
    mask = torch.cat(
        (
            sees_prompt[:, None].expand(-1, len(steps), -1),
            sees_own.expand(len(inputs), -1, -1),
        ),
        dim=-1,
    )
    # Behind a long prompt the padding of a short completion may lie past the last position; nobody reads it.
    positions = (before + steps).clamp_(max=model.config.block_size - 1)
    own = model.hidden(inputs, cache=prefix, position_ids=positions, attention_mask=mask[:, None])
    states = torch.cat((states, own), dim=1)  # (P G, T, D)
    is_token = torch.arange(token_ids.shape[1], device=device) < lengths[:, None]
    return states[is_token], token_ids[is_token]


def pad(rows: Sequence[Sequence[int]], *, device: torch.device, at_least: int = 1) -> tuple[Tensor, Tensor]:
    """Rows of token ids -> (rows, longest) padded with 0 on the right, and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.zeros(len(rows), max(at_least, int(lengths.max())), dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    return padded.to(device), lengths.to(device)
