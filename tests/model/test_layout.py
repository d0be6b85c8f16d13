"""Texts in one long row: where their tokens are, and that the model makes of them what it makes of each alone."""

from __future__ import annotations

import pytest
import torch
from edit_world import random_model

from nanogpt_edit.model import ragged
from nanogpt_edit.model.ragged import Layout, Recorder, Shared

CPU = torch.device("cpu")
TEXTS = [(5, 6, 7, 8, 9), (5, 6, 7, 8, 4, 2), (3,), (5, 6, 7, 8, 9)]


@pytest.fixture(autouse=True)
def sharing_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "WORTH_TOKENS", 4)


def test_what_texts_begin_with_is_there_once() -> None:
    layout = Layout.of(TEXTS, device=CPU)
    # four shared tokens; what is left of texts 0, 3 and 1; the text that stands alone
    assert layout.token_ids.tolist() == [[5, 6, 7, 8, 9, 9, 4, 2, 3]]
    assert layout.positions.tolist() == [[0, 1, 2, 3, 4, 4, 4, 5, 0]]
    beginning, rests, alone = layout.view.segments
    assert [each.lengths.tolist() for each in (beginning, rests, alone)] == [[4], [1, 1, 2], [1]]
    assert rests.before == Shared(beginning, copies=3)
    assert beginning.before is alone.before is None
    assert [place.tolist() for place in layout.places] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 6, 7],
        [8],
        [0, 1, 2, 3, 5],
    ]


def test_the_beginnings_of_texts_are_found_in_their_row() -> None:
    row = Layout.of(TEXTS, device=CPU)
    some = Layout.of([TEXTS[3][:2], TEXTS[1][:5]], device=CPU)
    assert row.token_ids[:, some.within(row, [3, 1])].tolist() == some.token_ids.tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_states_and_keys_are_those_of_each_text_alone(family: str) -> None:
    model = random_model(family)
    row = Layout.of(TEXTS, device=CPU)
    recorder = Recorder(row.view)
    with torch.no_grad():
        x = model.embed_tokens(row.token_ids, row.positions)
        states = model.run_blocks(x, view=recorder, position_ids=row.positions)
        for text, place in zip(TEXTS, row.places, strict=True):
            alone = model.run_blocks(model.embed_tokens(torch.tensor([text])))
            torch.testing.assert_close(states[:, place], alone, rtol=1e-3, atol=1e-3)
            plain = Recorder()
            model.run_blocks(model.embed_tokens(torch.tensor([text])), view=plain)
            torch.testing.assert_close(recorder.stacked()[:, :, :, place], plain.stacked(), rtol=1e-3, atol=1e-3)
