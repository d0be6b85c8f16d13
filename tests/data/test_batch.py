from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.batch import collate, micro_batches
from nanogpt_edit.data.samples import Sample


def test_samples_stand_behind_one_another() -> None:
    batch = collate([Sample((5, 6, 7), (0, 1, 1)), Sample((8,), (0,))])
    assert batch.token_ids.tolist() == [5, 6, 7, 8]
    assert batch.is_target.tolist() == [False, True, True, False]
    assert batch.lengths.tolist() == [3, 1]
    assert [each.dtype for each in (batch.token_ids, batch.lengths, batch.is_target)] == [
        torch.int64,
        torch.int64,
        torch.bool,
    ]


def test_a_batch_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(UserError, match="without a single target token"):
        collate([Sample((5, 6), (0, 0)), Sample((7,), (0,))])


@given(lengths=st.lists(st.integers(1, 40), max_size=100), max_tokens=st.integers(1, 200))
def test_micro_batches_hold_every_sample_once_and_no_more_tokens_than_allowed(
    lengths: list[int], max_tokens: int
) -> None:
    samples = [Sample((number,) * length, (1,) * length) for number, length in enumerate(lengths)]
    batches = list(micro_batches(samples, max_tokens=max_tokens))
    rows = [tuple(row.tolist()) for batch in batches for row in batch.token_ids.split(batch.lengths.tolist())]
    assert sorted(rows) == sorted(sample.token_ids for sample in samples)
    assert [len(row) for row in rows] == sorted(lengths), "those of like length together"
    assert all(len(batch.token_ids) <= max_tokens or len(batch.lengths) == 1 for batch in batches)
    for batch, following in pairwise(batches):
        assert len(batch.token_ids) + int(following.lengths[0]) > max_tokens, "no batch is smaller than it must be"
