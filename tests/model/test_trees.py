"""Texts that share their beginnings in one row: how they stand there, and that each is as it is alone."""

from __future__ import annotations

import pytest
import torch
from edit_world import random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.trees import last_states, shared_tokens, trees_of

TEXTS = [(5, 9, 2), (7, 1), (5, 9), (5, 8), (5, 9, 2)]


def test_what_texts_begin_with_is_there_once() -> None:
    """(5, 8), (5, 9) and twice (5, 9, 2) are 5, 8, 9, 2; (7, 1) stands behind them and sees itself alone."""
    (tree,) = trees_of(TEXTS)
    assert tree.token_ids == [5, 8, 9, 2, 7, 1]
    assert tree.paths == {3: [0, 1], 2: [0, 2], 0: [0, 2, 3], 4: [0, 2, 3], 1: [4, 5]}
    assert tree.positions().tolist() == [0, 1, 1, 2, 0, 1]
    sees = [[place for place, seen in enumerate(row) if seen] for row in tree.mask(7).tolist()]
    assert sees == [[0], [0, 1], [0, 2], [0, 2, 3], [4], [4, 5], [6]]
    assert [tree.token_ids for tree in trees_of(TEXTS, row_tokens=3)] == [[5, 8, 9], [5, 9, 2], [7, 1]]
    assert (shared_tokens((), (5,)), shared_tokens((5, 9, 2), (5, 9)), trees_of([])) == (0, 2, [])


TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple)


@pytest.mark.parametrize("model", [random_model("gpt2"), random_model("llama")], ids=["gpt2", "llama"])
@given(texts=st.lists(TOKENS, min_size=1, max_size=8), room=st.integers(1, 40), data=st.data())
@settings(deadline=None, max_examples=25)
@torch.no_grad()
def test_any_texts_have_the_states_they_have_alone(
    model: GPT, texts: list[tuple[int, ...]], room: int, data: st.DataObject
) -> None:
    counts = [data.draw(st.integers(1, len(text))) for text in texts]
    seen: list[int] = []
    for numbers, states in last_states(model, texts, counts, batch_tokens=room):
        alone = [model.hidden(torch.tensor([texts[i]]))[0, -counts[i] :] for i in numbers]
        torch.testing.assert_close(states, torch.cat(alone), rtol=1e-4, atol=1e-5)
        seen += numbers
    assert sorted(seen) == list(range(len(texts)))
