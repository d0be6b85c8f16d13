from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.batch import collate, length_grouped_batches
from nanogpt_edit.data.problems import Sample

LENGTHS = st.lists(st.integers(1, 40), max_size=300)


def test_collate_pads_on_the_right_and_never_targets_padding() -> None:
    batch = collate([Sample((5, 6, 7), (0, 1, 1)), Sample((8,), (0,))], pad_id=9)
    assert batch.token_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.loss_mask.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]
    assert (batch.token_ids.dtype, batch.loss_mask.dtype, batch.lengths.dtype) == (
        torch.int64,
        torch.float32,
        torch.int64,
    )


def test_a_batch_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(UserError, match="without a single target token"):
        collate([Sample((5, 6), (0, 0)), Sample((7,), (0,))], pad_id=0)


@given(lengths=LENGTHS, batch_size=st.integers(1, 17), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_batches_hold_every_row_once(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    batches = length_grouped_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert len(batches) <= len(lengths) // batch_size + len(lengths) // (50 * batch_size) + 1, "full but for the ends"
    assert batches == length_grouped_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch)


@given(lengths=LENGTHS, max_tokens=st.integers(40, 200), seed=st.integers(0, 5))
def test_batches_never_exceed_max_tokens_padding_included(lengths: list[int], max_tokens: int, seed: int) -> None:
    batches = length_grouped_batches(lengths, max_tokens=max_tokens, seed=seed, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= max_tokens for batch in batches)


def test_grouping_saves_most_of_the_padding_and_changes_with_the_epoch() -> None:
    lengths = [10 + (i * 37) % 90 for i in range(2_000)]

    def padding(batches: list[list[int]]) -> float:
        return 1 - sum(lengths) / sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

    grouped = length_grouped_batches(lengths, batch_size=8, seed=0, epoch=0)
    in_file_order = [list(range(start, start + 8)) for start in range(0, 2_000, 8)]
    assert padding(grouped) < 0.03 < 0.3 < padding(in_file_order)
    assert grouped != length_grouped_batches(lengths, batch_size=8, seed=0, epoch=1)
    assert grouped != length_grouped_batches(lengths, batch_size=8, seed=1, epoch=0)
    longest = [max(lengths[i] for i in batch) for batch in grouped[:50]]
    assert longest != sorted(longest), "batches come in random order, not from short to long"


def test_a_row_that_cannot_fit_is_an_error() -> None:
    with pytest.raises(UserError, match="max_tokens 10 is less than the longest sample .11 tokens."):
        length_grouped_batches([3, 11], max_tokens=10, seed=0, epoch=0)
    for wrong in ({}, {"batch_size": 2, "max_tokens": 2}):
        with pytest.raises(ValueError):
            length_grouped_batches([1], seed=0, epoch=0, **wrong)
