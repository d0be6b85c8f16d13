"""Word problems as tokens: the format, its mask, and what does not fit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import tokenizers

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import prompt_ids, to_sample, to_samples, with_room
from nanogpt_edit.model.tokenizer import Tokenizer


@pytest.mark.parametrize("name", ["[SEP]", "<pad>", "<|endoftext|>", "<answer>"])
@pytest.mark.parametrize("field", ["question", "rationale", "answer"])
def test_a_special_token_of_the_models_own_is_refused_with_the_problem(name: str, field: str) -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.add_special_tokens(["[SEP]", "<pad>", "<|endoftext|>"])
    own = Tokenizer(inner)
    good = Problem(question="3 + 4?", rationale="3 + 4 = 7", answer="7", id="x:1")
    bad = replace(good, id="x:2", **{field: f"7 {name}"})
    for use in (
        lambda: to_samples([good, bad], own, block_size=99),
        lambda: with_room([good, bad], own, room=1, block_size=99),
    ):
        with pytest.raises(UserError, match=rf"problem x:2: the text holds {re.escape(name)}, a special token"):
            use()


def test_a_sample_spells_out_the_format_and_masks_the_question(tokenizer: Tokenizer) -> None:
    problem = Problem(question=" Tom has 3 apples. How many? ", rationale="3 + 4 = 7\nSo 7.", answer="7", id="x:1")
    sample = to_sample(problem, tokenizer)
    text = "Tom has 3 apples. How many?<think>3 + 4 = 7\nSo 7.</think><answer>7</answer>"
    assert tokenizer.decode(sample.token_ids) == text
    assert list(sample.token_ids) == tokenizer.encode(text), "joining the parts is encoding the whole"
    prompt = prompt_ids(problem, tokenizer)
    assert prompt == prompt_ids("Tom has 3 apples. How many?", tokenizer)
    assert sample.loss_mask == (0,) * len(prompt) + (1,) * (len(sample.token_ids) - len(prompt))
    assert sample.token_ids[len(prompt)] == tokenizer.think_start
    assert sample.token_ids[-1] == tokenizer.answer_end


def test_an_empty_rationale_leaves_the_tags(tokenizer: Tokenizer) -> None:
    sample = to_sample(Problem(question="3 + 4?", rationale="", answer="7", id="x:1"), tokenizer)
    assert tokenizer.decode(sample.token_ids) == "3 + 4?<think></think><answer>7</answer>"


def test_samples_too_long_are_counted_never_dropped_in_silence(tokenizer: Tokenizer) -> None:
    short = Problem(question="3 + 4?", rationale="", answer="7", id="x:1")
    length = len(to_sample(short, tokenizer).token_ids)
    longer = Problem(question="3 + 4?", rationale="7", answer="7", id="x:2")
    samples, notes = to_samples([short, longer, short], tokenizer, block_size=length)
    assert [len(sample.token_ids) for sample in samples] == [length, length], "exactly block_size still fits"
    assert notes == (
        f"1 of 3 problems were left out because they exceed block_size {length} (the longest has {length + 1} tokens).",
    )
    assert to_samples([short], tokenizer, block_size=length)[1] == ()
    with pytest.raises(UserError, match=f"None of 2 problems fits in block_size {length - 1}"):
        to_samples([short, longer], tokenizer, block_size=length - 1)


def test_questions_without_room_for_an_answer_are_counted(tokenizer: Tokenizer) -> None:
    short = Problem(question="3 + 4?", rationale="", answer="7", id="x:1")
    longer = Problem(question="3 + 4 + 1?", rationale="", answer="8", id="x:2")
    length = len(prompt_ids(short, tokenizer))
    kept, notes = with_room([short, longer], tokenizer, room=5, block_size=length + 5)
    assert kept == [short]
    assert notes == [
        "1 of 2 problems were left out because their question leaves no room for a completion of 5 tokens in "
        f"block_size {length + 5}."
    ]
    assert with_room([short], tokenizer, room=5, block_size=length + 5) == ([short], [])
    assert with_room([], tokenizer, room=5, block_size=1) == ([], [])
    with pytest.raises(UserError, match="None of 1 questions leaves room for a completion of 6 tokens"):
        with_room([short], tokenizer, room=6, block_size=length + 5)
