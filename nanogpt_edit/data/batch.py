"""Samples -> padded batches, rows of like length together so that little of a batch is padding.

Grouping shuffles all rows, sorts only within chunks of a few dozen batches, and shuffles the batches: random enough
for SGD, nearly free of padding. The same (seed, epoch) gives the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.problems import Sample

CHUNK_BATCHES = 50


@dataclass(frozen=True)
class Batch:
    """B samples, right padded to the longest, T tokens."""

    token_ids: Tensor  # (B, T) int64
    loss_mask: Tensor  # (B, T) float32, 1 where the token is a target, 0 on prompt and padding
    lengths: Tensor  # (B,) int64, tokens before the padding


def collate(samples: Sequence[Sample], *, pad_id: int) -> Batch:
    """Pad `samples` on the right to the longest of them.

    Raises UserError when no token of the batch is a target (nothing could be learned from it).
    """
    lengths = torch.tensor([len(sample.token_ids) for sample in samples], dtype=torch.int64)  # (B,)
    width = int(lengths.max())
    token_ids = torch.full((len(samples), width), pad_id, dtype=torch.int64)  # (B, T)
    loss_mask = torch.zeros((len(samples), width), dtype=torch.float32)  # (B, T)
    for row, sample in enumerate(samples):
        token_ids[row, : len(sample.token_ids)] = torch.tensor(sample.token_ids, dtype=torch.int64)
        loss_mask[row, : len(sample.loss_mask)] = torch.tensor(sample.loss_mask, dtype=torch.float32)
    if not loss_mask.any():
        raise UserError("A batch without a single target token: every loss mask in it is zero; check the samples.")
    return Batch(token_ids=token_ids, loss_mask=loss_mask, lengths=lengths)


def length_grouped_batches(
    lengths: Sequence[int], *, batch_size: int | None = None, max_tokens: int | None = None, seed: int, epoch: int
) -> list[list[int]]:
    """Indices of `lengths` in batches of like length, each index exactly once.

    Give one of `batch_size` (rows per batch; the last may be smaller) or `max_tokens` (rows × longest row, padding
    included, never exceeds it). Raises UserError when one row alone exceeds `max_tokens`.
    """
    if (batch_size is None) == (max_tokens is None):
        raise ValueError("give one of batch_size and max_tokens")
    if max_tokens is not None and max(lengths, default=0) > max_tokens:
        raise UserError(f"max_tokens {max_tokens} is less than the longest sample ({max(lengths)} tokens); raise it.")
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths)).tolist()
    rows = batch_size or max(1, (max_tokens or 0) * len(lengths) // max(1, sum(lengths)))
    chunk = rows * CHUNK_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(order), chunk):
        by_length = sorted(order[start : start + chunk], key=lambda index: lengths[index])
        batches += _fill(by_length, lengths, batch_size=batch_size, max_tokens=max_tokens)
    return [batches[i] for i in generator.permutation(len(batches))]


def _fill(
    by_length: list[int], lengths: Sequence[int], *, batch_size: int | None, max_tokens: int | None
) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in by_length:
        rows = len(batches[-1]) + 1 if batches else 0
        # ascending lengths: the newcomer is the longest row of its batch
        fits = rows <= batch_size if batch_size is not None else rows * lengths[index] <= (max_tokens or 0)
        if batches and fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
