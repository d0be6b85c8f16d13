"""Rows without padding, one after the other, give the states and gradients that each gives alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanogpt_edit.data.batch import collate
from nanogpt_edit.data.samples import Sample
from nanogpt_edit.model import ragged
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.ragged import Segment, like_lengths, packed_states
from nanogpt_edit.training.sft import completion_loss_sum

FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])
CPU = torch.device("cpu")


def bold(family: str, *, dropout: float = 0.0) -> GPT:
    """A random model whose weights are large enough that every token before matters to the next."""
    model = GPT(replace(tiny_config(family, vocab_size=40, block_size=24), n_embd=16, dropout=dropout), seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() == 2 else 1)
    return model


def test_where_the_tokens_of_three_rows_stand() -> None:
    grid = Segment(torch.tensor([2, 0, 3]))
    tokens = torch.arange(5.0)[None, None, :, None]  # (1, H, N, E)
    rows = grid.spread(tokens)
    assert rows.shape == (3, 1, 3, 1)
    assert (rows[0, 0, :2, 0].tolist(), rows[2, 0, :, 0].tolist()) == ([0, 1], [2, 3, 4])
    assert torch.equal(grid.collect(rows), tokens)


def test_neighbours_of_like_length_are_padded_together() -> None:
    # 121 pairs wasted on the first two, then 2 (200² − 61²)
    assert like_lengths([60, 61, 200], CPU) == [slice(0, 2), slice(2, 3)]
    assert like_lengths([7], CPU) == [slice(0, 1)]
    assert like_lengths([30, 50, 70], CPU) == [slice(0, 2), slice(2, 3)]  # 1,600; 1,600 + 2 · 2,400


def test_on_a_gpu_a_further_segment_is_dearer_than_much_padding() -> None:
    assert like_lengths([60, 61, 200], torch.device("cuda")) == [slice(0, 3)]


def flat_rows(rows: Tensor, lengths: list[int]) -> Tensor:
    """(B, T) -> (N,) the first `lengths` of each row behind one another."""
    return torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])


def rows_of(lengths: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(lengths))
    return torch.randint(0, 40, (len(lengths), max(lengths)), generator=generator)


@FAMILIES
@settings(max_examples=8)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any), wasted=st.sampled_from([0, 50, 4096]))
def test_states_and_gradients_are_those_of_each_row_alone(family: str, lengths: list[int], wasted: int) -> None:
    """Of all tokens or of some, padded with others of like length or not."""
    model, token_ids = bold(family), rows_of(lengths)
    wanted = token_ids % 3 > 0
    wanted[:, 0] = True
    rows = list(zip(token_ids, lengths, strict=True))
    alone = torch.cat([model.hidden(row[None, :length])[0] for row, length in rows if length])
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ragged, "WASTED_PAIRS", wasted)
        flat, kept = flat_rows(token_ids, lengths), flat_rows(wanted, lengths)
        packed = packed_states(model, flat, torch.tensor(lengths))
        some = packed_states(model, flat, torch.tensor(lengths), wanted=kept)
    check_states_and_gradients(model, packed, alone)
    check_states_and_gradients(model, some, alone[kept])


def check_states_and_gradients(model: GPT, packed: Tensor, alone: Tensor) -> None:
    torch.testing.assert_close(packed, alone, atol=3e-5, rtol=1e-4)
    slope = torch.linspace(-1, 1, alone.numel()).view_as(alone)
    found, expected = (
        torch.autograd.grad((each * slope).sum(), model.blocks.parameters(), retain_graph=True)
        for each in (packed, alone)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-3)


def test_the_loss_of_a_batch_is_that_of_the_padded_batch() -> None:
    model = bold("gpt2")
    rows = [Sample((5, 6, 7, 8, 9), (0, 0, 1, 1, 1)), Sample((3,), (1,)), Sample((1, 2, 3), (0, 1, 1))]
    token_ids = pad_sequence([torch.tensor(row.token_ids) for row in rows], batch_first=True)
    is_target = pad_sequence([torch.tensor(row.loss_mask) for row in rows], batch_first=True)
    logprobs = model(token_ids[:, :-1]).log_softmax(dim=-1).gather(2, token_ids[:, 1:, None]).squeeze(2)
    expected = -(logprobs * is_target[:, 1:]).sum()
    assert completion_loss_sum(model, collate(rows)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_dropout_of_the_attention_is_drawn_in_training_only() -> None:
    model, lengths = bold("gpt2", dropout=0.5), torch.tensor([6, 9])
    token_ids = flat_rows(rows_of([6, 9]), [6, 9])
    for module in model.modules():  # leave the attention's own dropout alone
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    first, second = (packed_states(model.train(), token_ids, lengths) for _ in range(2))
    assert not torch.allclose(first, second)
    first, second = (packed_states(model.eval(), token_ids, lengths) for _ in range(2))
    assert torch.equal(first, second)
