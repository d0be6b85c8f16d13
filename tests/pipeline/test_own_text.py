"""Text that a model writes itself: as much as is asked for, the same each time, without the tokens added to it."""

from __future__ import annotations

import pytest

from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import END_OF_TEXT, tokenizer_of
from nanogpt_edit.pipeline.own_text import OPENING, opening_ids, own_text


def test_a_model_writes_as_much_text_as_it_is_asked_for(speaking_gpt: GPT) -> None:
    written = own_text(speaking_gpt, tokens=200, seed=0)
    assert written == own_text(speaking_gpt, tokens=200, seed=0)
    assert written != own_text(speaking_gpt, tokens=200, seed=1)
    assert all(text.strip() for text in written)
    assert not any(tag in text for text in written for tag in (END_OF_TEXT, "<think>", "</answer>"))
    assert len(own_text(speaking_gpt, tokens=400, seed=0)) > len(written)


def test_a_text_opens_with_the_end_of_the_one_before_or_with_a_word(
    speaking_gpt: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of(speaking_gpt)
    assert [tokenizer.token_text(i) for i in opening_ids(tokenizer)] == [END_OF_TEXT]
    monkeypatch.setattr("nanogpt_edit.pipeline.own_text.END_OF_TEXT_NAMES", ("</s>",))
    assert tokenizer.decode(opening_ids(tokenizer)) == OPENING
