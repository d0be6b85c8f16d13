"""Completions token by token: each token's log-probability and its place's entropy, by the plain softmax."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.samples import prompt_ids
from nanogpt_edit.evaluation.records import EvalRecord, read_told, write_told
from nanogpt_edit.evaluation.told import tell, to_tell
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of


def record(text: str, *, correct: bool, skill: str = "problems", prompt: str = "3 + 4?") -> EvalRecord:
    return EvalRecord(skill, "p", 0, prompt, "7", text, None, None, correct, False, 0, 0, "stop")


def test_every_token_has_the_numbers_of_the_whole_softmax(speaking_gpt: GPT, tmp_path: Path) -> None:
    tokenizer, written = tokenizer_of(speaking_gpt), record("3 + 4 = 7", correct=True)
    (told,) = tell(speaking_gpt, [written], form="Q: {}")
    prompt, ids = prompt_ids("Q: 3 + 4?", tokenizer), tokenizer.encode("3 + 4 = 7")
    assert "".join(told.token_texts) == "3 + 4 = 7" and len(told.token_texts) == len(ids)
    with torch.no_grad():
        spread = speaking_gpt(torch.tensor([[*prompt, *ids]]))[0].log_softmax(dim=-1)[len(prompt) - 1 : -1]
    assert told.logprobs == pytest.approx([spread[at, token].item() for at, token in enumerate(ids)], abs=2e-5)
    assert told.entropy == pytest.approx((-(spread.exp() * spread).sum(dim=-1)).tolist(), abs=2e-5)
    write_told(tmp_path / "x_tokens.jsonl", [told])
    assert read_told(tmp_path / "x_tokens.jsonl") == [told]
    with pytest.raises(UserError, match="entropy"):
        replace(told, entropy=told.entropy[1:])


def test_what_lies_beyond_the_window_is_left_out(speaking_gpt: GPT) -> None:
    window, tokenizer = speaking_gpt.config.block_size, tokenizer_of(speaking_gpt)
    (told,) = tell(speaking_gpt, [record("7 " * window, correct=False)])
    assert len(told.token_texts) == window - len(prompt_ids("3 + 4?", tokenizer))


def test_the_first_right_and_the_first_wrong_one_are_told() -> None:
    right, wrong = record("7", correct=True), record("8", correct=False)
    sums = [replace(each, skill="arithmetic") for each in (wrong, wrong)]
    nothing, probe = replace(wrong, text=""), replace(wrong, skill="probes")
    assert to_tell([probe, nothing, wrong, right, right, *sums]) == [right, wrong, sums[0]]
