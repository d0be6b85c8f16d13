"""Samples -> the rows of a step, and flat batches: samples behind one another, without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.samples import Sample

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """B samples behind one another, N tokens in all."""

    token_ids: Tensor
    """(N,) int64."""
    lengths: Tensor
    """(B,) int64, tokens of each sample."""
    is_target: Tensor
    """(N,) bool."""

    def neighbours(self) -> tuple[Tensor, Tensor]:
        """(N,) bool each: which tokens are read to predict the one behind them, and which are predicted, in the same
        order: all but each sample's last, all but its first."""
        ends = self.lengths.cumsum(0)
        is_last, is_first = torch.zeros(2, len(self.token_ids), dtype=torch.bool, device=self.token_ids.device)
        is_last[ends - 1], is_first[ends - self.lengths] = True, True
        return ~is_last, ~is_first

    def to(self, device: torch.device) -> Batch:
        return Batch(self.token_ids.to(device), self.lengths.to(device), self.is_target.to(device))


def collate(samples: Sequence[Sample]) -> Batch:
    """`samples` behind one another.

    Raises UserError when no token of the batch is a target (nothing could be learned from it).
    """
    is_target = torch.cat([torch.tensor(sample.loss_mask, dtype=torch.bool) for sample in samples])
    if not is_target.any():
        raise UserError("A batch without a single target token: every loss mask in it is zero; check the samples.")
    return Batch(
        token_ids=torch.cat([torch.tensor(sample.token_ids, dtype=torch.int64) for sample in samples]),
        lengths=torch.tensor([len(sample.token_ids) for sample in samples], dtype=torch.int64),
        is_target=is_target,
    )


def micro_batches(samples: Sequence[Sample], *, max_tokens: int) -> Iterator[Batch]:
    """All of `samples`, those of like length together, in batches of at most `max_tokens` tokens (or one sample)."""
    by_length = sorted(samples, key=lambda sample: len(sample.token_ids))
    for rows in within_budget(by_length, lambda sample: len(sample.token_ids), max_tokens=max_tokens):
        yield collate(rows)


def within_budget(items: Iterable[Item], tokens: Callable[[Item], int], *, max_tokens: int) -> Iterator[list[Item]]:
    """All items in their order, in lists of at most `max_tokens` tokens together (or one item)."""
    batch: list[Item] = []
    room = max_tokens
    for item in items:
        needed = tokens(item)
        if batch and needed > room:
            yield batch
            batch, room = [], max_tokens
        batch.append(item)
        room -= needed
    if batch:
        yield batch


def rows_of_step(count: int, *, rows: int, seed: int, step: int) -> list[int]:
    """Which of `count` items step number `step` takes: consecutive pieces of one permutation per epoch."""
    chosen: list[int] = []
    position = step * rows
    while len(chosen) < rows:
        epoch, offset = divmod(position + len(chosen), count)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        chosen += order[offset : offset + rows - len(chosen)].tolist()
    return chosen
