"""A group's prompt is computed once for all its completions, in training too, and nothing is padding.

The prompts of a batch and the completions that follow them go through the model together as one row (`packed.py`); in
attention a completion looks at its prompt's keys and values first, then at its own. The gradient is that of running
every prompt with each of its completions (a test shows it), at a fraction of the work: with a prompt of P tokens and G
completions of T, (P + G T) token-rows instead of G (P + T).

Shapes: P prompts of at most S tokens, G completions each of at most T tokens, N tokens in the loss, H heads, E head
width, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nanogpt_edit.model.attention import attention, causal_mask
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.training.packed import Grid


class SharedPrompts:
    """An `AttentionView`: first all prompts' tokens, then all their completions', `copies` of each prompt."""

    def __init__(self, prompts: Grid, completions: Grid, *, copies: int) -> None:
        self.prompts, self.completions, self.copies = prompts, completions, copies
        self.length = 0
        sees_prompt = prompts.is_token.repeat_interleave(copies, dim=0)  # (P G, S)
        rows, width = completions.is_token.shape
        sees_own = causal_mask(width, width, device=sees_prompt.device).expand(rows, -1, -1)
        sees = torch.cat((sees_prompt[:, None].expand(-1, width, -1), sees_own), dim=-1)
        self.mask = sees[:, None]  # (P G, 1, T, S+T)

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        parts = [each.split((len(self.prompts.cell), len(self.completions.cell)), dim=2) for each in (q, keys, values)]
        q, keys, values = (self.prompts.spread(prompts) for prompts, _ in parts)  # (P, H, S, E)
        seen = self.prompts.collect(attention(q, keys, values))
        if not len(self.completions.cell):
            return seen
        own_q, own_keys, own_values = (self.completions.spread(own) for _, own in parts)  # (P G, H, T, E)
        own_keys = torch.cat((keys.repeat_interleave(self.copies, dim=0), own_keys), dim=2)
        own_values = torch.cat((values.repeat_interleave(self.copies, dim=0), own_values), dim=2)
        own = self.completions.collect(attention(own_q, own_keys, own_values, mask=self.mask))
        return torch.cat((seen, own), dim=2)


def completion_states(
    model: GPT, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]
) -> tuple[Tensor, Tensor]:
    """The state that predicts each completion token, and the token.

    `prompts[p]` and `completions[p][g]` are token ids, with the same number G of completions for each prompt ->
    states (N, D) and targets (N,), in the order of prompts, completions, tokens.
    """
    copies = len(completions[0])
    prompt_ids, prompt_lengths = pad(prompts, device=model.device)  # (P, S), (P,)
    token_ids, lengths = pad([ids for group in completions for ids in group], device=model.device)  # (P G, T)
    asked, read = Grid(prompt_lengths), Grid(lengths - 1)  # a completion's last token predicts nothing
    positions = torch.cat((asked.columns, prompt_lengths[read.rows // copies] + read.columns))
    states = model.hidden(
        torch.cat((prompt_ids[asked.is_token], token_ids[:, :-1][read.is_token]))[None],
        view=SharedPrompts(asked, read, copies=copies),
        position_ids=positions[None],
    )[0]
    # The first token of a completion is predicted at its prompt's end, every other one at the token before.
    targets = Grid(lengths)
    row, column = targets.rows, targets.columns
    prompt_end = (prompt_lengths.cumsum(0) - 1)[row // copies]
    before = len(asked.cell) + ((lengths - 1).cumsum(0) - (lengths - 1))[row] + column - 1
    # Not states[…]: a prompt's end is read once for each completion, and the gradients of reading with brackets are
    # added up by all threads at once, in the order they come; then the same run gives other numbers.
    return states.index_select(0, torch.where(column == 0, prompt_end, before)), token_ids[targets.is_token]


def pad(rows: Sequence[Sequence[int]], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of token ids -> (rows, longest) padded with 0 on the right, and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    return padded.to(device), lengths.to(device)
