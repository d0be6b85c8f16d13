"""Texts from the token on where δ is added, ready to be run through the upper blocks again and again.

Nothing that δ cannot reach is computed twice. The blocks up to the last edited one, and in the blocks above it the keys
and values of the tokens before δ's, are made once (`clean_runs`); the last block computes only the tokens that are
read. The texts are one long row, in groups of nearly equal length (`long_row`).

Shapes: R texts, B of them in a group, Q longest suffix, P longest text before it, J most tokens read, M tokens read in
all, N facts, A layers above the last edited one, D model width, K heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanogpt_edit.editing.clean_runs import CleanRun, Text
from nanogpt_edit.editing.contexts import pad_rows
from nanogpt_edit.editing.long_row import Group, LongRow, by_length
from nanogpt_edit.editing.prefix import FrozenPrefix, suffix_mask
from nanogpt_edit.model.gpt import GPT

NOTHING = -100


@dataclass(frozen=True)
class _Group:
    fact: Tensor  # (B,)
    suffix: Tensor  # (B, Q, D) resid_post of the last edited layer
    positions: Tensor  # (B, Q)
    mask: Tensor  # (B, 1, Q, P + Q)
    prefix: Tensor  # (B, 2A, K, P, E) keys and values of what stands before
    columns: Tensor  # (B, J) the tokens read, as offsets into the suffix
    wanted: Tensor  # (B, J) what they should predict; NOTHING where a text has fewer

    def select(self, chosen: Tensor) -> _Group:
        parts = (self.fact, self.suffix, self.positions, self.mask, self.prefix, self.columns, self.wanted)
        return _Group(*(part[chosen] for part in parts))

    def with_delta(self, delta: Tensor | None) -> Tensor:
        """(B, Q, D) what goes into the blocks above, δ (N, D) added if there is one."""
        if delta is None:
            return self.suffix
        first = self.suffix[:, :1] + delta[self.fact][:, None].to(self.suffix.dtype)
        return torch.cat((first, self.suffix[:, 1:]), dim=1)

    def in_attention(self, start: int) -> Group:
        """`start` is the first layer above the last edited one."""
        rows, length, _ = self.suffix.shape
        return Group((rows, length), before=FrozenPrefix(self.prefix, first_layer=start), mask=self.mask)

    def reads(self, first: int) -> Tensor:
        """(B·J,) the tokens read, as places in a long row where the group begins at `first`."""
        rows, length, _ = self.suffix.shape
        firsts = first + length * torch.arange(rows, device=self.columns.device)
        return (firsts[:, None] + self.columns).flatten()


@dataclass(frozen=True)
class Suffixes:
    """Some texts, in groups."""

    groups: tuple[_Group, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: GPT, texts: Sequence[Text], runs: Sequence[CleanRun]) -> Suffixes:
        """In groups of nearly equal length; `runs` are those of `texts`."""
        groups = by_length([(text.length, len(text.wanted)) for text in texts])
        return cls(tuple(_group(model, [texts[i] for i in group], [runs[i] for i in group]) for group in groups))

    @property
    def fact(self) -> Tensor:
        """(M,) whose token each of those read is."""
        return torch.cat([g.fact[:, None].expand_as(g.wanted)[g.wanted != NOTHING] for g in self.groups])

    @property
    def wanted(self) -> Tensor:
        """(M,) what each should predict."""
        return torch.cat([g.wanted[g.wanted != NOTHING] for g in self.groups])

    def states(self, model: GPT, delta: Tensor | None = None) -> Tensor:
        """(M, D) normalised states of the tokens read, with δ (N, D) added if there is one."""
        start = model.config.n_layer - self.groups[0].prefix.shape[1] // 2
        firsts = accumulate((group.positions.numel() for group in self.groups), initial=0)
        read = model.run_blocks(
            torch.cat([group.with_delta(delta).flatten(0, 1) for group in self.groups])[None],
            start=start,
            view=LongRow([group.in_attention(start) for group in self.groups]),
            position_ids=torch.cat([group.positions.flatten() for group in self.groups])[None],
            columns=torch.cat([group.reads(first) for group, first in zip(self.groups, firsts, strict=False)])[None],
        )[0]
        return model.final(read[torch.cat([group.wanted.flatten() for group in self.groups]) != NOTHING])

    def select(self, alive: Tensor) -> Suffixes:
        """Only the texts of the facts where `alive` (N,) is true."""
        chosen = [(group, alive[group.fact]) for group in self.groups]
        return Suffixes(tuple(group.select(mine) for group, mine in chosen if mine.any()))

    def __add__(self, other: Suffixes) -> Suffixes:
        return Suffixes(self.groups + other.groups)


def _group(model: GPT, texts: Sequence[Text], runs: Sequence[CleanRun]) -> _Group:
    device = model.device
    starts = torch.tensor([text.start for text in texts], device=device)
    suffix = pad_sequence([run.suffix for run in runs], batch_first=True)
    prefix = pad_sequence([run.prefix for run in runs], batch_first=True)
    positions = starts[:, None] + torch.arange(suffix.shape[1], device=device)
    reads = [[text.length - len(text.wanted) + j for j in range(len(text.wanted))] for text in texts]
    return _Group(
        fact=torch.tensor([text.fact for text in texts], device=device),
        suffix=suffix,
        positions=positions.clamp_max(model.config.block_size - 1),
        mask=suffix_mask(starts, prefix=prefix.shape[1], length=suffix.shape[1]),
        prefix=prefix.permute(0, 2, 3, 1, 4).contiguous(),
        columns=pad_rows(reads, pad_id=0, device=device),
        wanted=pad_rows([text.wanted for text in texts], pad_id=NOTHING, device=device),
    )
