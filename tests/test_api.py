"""`import nanogpt_edit as ne`: quick to import, and the shortest way to each result."""

from __future__ import annotations

import pytest

from nanogpt_edit.api import Generation, generate
from nanogpt_edit.errors import UserError
from nanogpt_edit.model.gpt import GPT

QUESTIONS = ["Tom has 3 apples. He buys 14 more.", "A baker bakes 120 loaves."]


def test_generate_gives_n_texts_per_prompt_in_order(speaking_gpt: GPT) -> None:
    found = generate(speaking_gpt, QUESTIONS, n=3, max_new_tokens=8)
    assert [generation.prompt for generation in found] == [QUESTIONS[0]] * 3 + [QUESTIONS[1]] * 3
    assert all(1 <= len(generation.token_ids) <= 8 for generation in found)
    assert len({generation.text for generation in found}) > 1
    assert found == generate(speaking_gpt, QUESTIONS, n=3, max_new_tokens=8)
    assert found != generate(speaking_gpt, QUESTIONS, n=3, max_new_tokens=8, seed=1)


def test_one_prompt_needs_no_list_and_temperature_0_is_greedy(speaking_gpt: GPT) -> None:
    (first,) = generate(speaking_gpt, QUESTIONS[0], temperature=0, max_new_tokens=8)
    (again,) = generate(speaking_gpt, QUESTIONS[0], temperature=0, max_new_tokens=8, seed=7)
    assert isinstance(first, Generation)
    assert first == again


def test_generation_ends_at_the_answer_or_the_end_of_the_text(speaking_gpt: GPT) -> None:
    tokenizer = speaking_gpt.tokenizer
    assert tokenizer is not None
    for stop in (tokenizer.answer_end, tokenizer.eos_id):
        assert stop is not None
        # The tied embedding of the stop token points where the final norm always points: it is the likeliest token.
        speaking_gpt.norm.weight.data.zero_()
        speaking_gpt.norm.bias.data.copy_(speaking_gpt.embed.weight.data[stop] * 1e4)
        (only,) = generate(speaking_gpt, QUESTIONS[0], temperature=0)
        assert only.token_ids == (stop,)
        assert only.finish_reason == "stop"
        assert only.text == ("</answer>" if stop == tokenizer.answer_end else "")


def test_a_model_without_a_tokenizer_is_named(gpt: GPT) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        generate(gpt, "Hello")


def test_an_empty_prompt_is_named(speaking_gpt: GPT) -> None:
    with pytest.raises(UserError, match="prompt 1 is empty"):
        generate(speaking_gpt, ["Hello", "  "])
