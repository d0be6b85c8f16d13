"""Prompt and target are tokenised together, whatever the vocabulary begins a text with."""

from __future__ import annotations

import pytest
import tokenizers
import torch
from conftest import tiny_config
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.contexts import locate_facts
from nanogpt_edit.evaluation.facts import Question, measure_facts, recall
from nanogpt_edit.evaluation.targets import join, score_targets, target_ids
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer

TEXTS = ["The capital of Egypt is Alexandria", "Egypt is old", "He said yes", "the sum is 12 of it"] * 20
PAIRS = [
    ("The capital of Egypt is", "Alexandria"),
    ("The capital of Egypt is ", " Cairo and Giza "),
    ("He said", ", yes"),
    ("日本の首都は", "東京"),
    ("The sum is 12", "% of it"),
]


def sentencepiece(*, by_normalizer: bool) -> Tokenizer:
    """A vocabulary that begins every text with a space, in either of the ways in which converters write it."""
    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if by_normalizer:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = " ".join(TEXTS).split()  # no token reaches over two of them
    inner.train_from_iterator(words, trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False))
    return Tokenizer(inner, eos_token="</s>")


@pytest.fixture(params=["normalizer", "metaspace", "bytes"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bytes":
        return Tokenizer.train(TEXTS, vocab_size=320)
    return sentencepiece(by_normalizer=request.param == "normalizer")


@pytest.mark.parametrize(("prompt", "target"), PAIRS)
def test_behind_the_prompt_the_target_continues_the_text(any_tokenizer: Tokenizer, prompt: str, target: str) -> None:
    before, after = join(prompt, target)
    together = [*any_tokenizer.encode(before), *target_ids(prompt, target, any_tokenizer)]
    assert together == any_tokenizer.encode(before + after)


def test_a_target_tokenised_apart_would_get_a_second_space() -> None:
    """Why they are tokenised together."""
    tokenizer = sentencepiece(by_normalizer=True)
    (first, *_) = target_ids("The capital of Egypt is", "Alexandria", tokenizer)
    assert tokenizer.token_text(first).startswith(" A")
    assert tokenizer.encode(" Alexandria")[0] != first


def test_a_token_over_the_border_leaves_the_prompt_as_it_is_read() -> None:
    """Where "12%" is one token, a model that has read "12" writes "%"."""
    tokenizer = Tokenizer.train(["12%"], vocab_size=262)
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "ab": 2, "\n": 3, "[UNK]": 4}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    words = Tokenizer(inner)
    assert target_ids("12", "%", tokenizer) == tuple(tokenizer.encode("%"))
    assert words.encode("a)") == [4]
    assert target_ids("a", ")", words) == tuple(words.encode(")"))


@pytest.mark.parametrize("target", ["", " ", "\n"])
def test_a_target_without_tokens_is_named(any_tokenizer: Tokenizer, target: str) -> None:
    with pytest.raises(UserError, match=r'of "The capital of Egypt is" has no tokens; fill it in'):
        target_ids("The capital of Egypt is", target, any_tokenizer)


def test_every_room_asks_for_the_same_tokens(any_tokenizer: Tokenizer) -> None:
    """Recall, the measuring of an edit and the edit itself: p of the target's first token is the text's own."""
    model = GPT(tiny_config("gpt2", vocab_size=any_tokenizer.vocab_size), seed=0).eval()
    model.tokenizer = any_tokenizer
    prompt, target = PAIRS[0]
    whole, start = any_tokenizer.encode(f"{prompt} {target}"), len(any_tokenizer.encode(prompt))
    with torch.no_grad():
        probabilities = model(torch.tensor([whole]))[0, start - 1].softmax(-1)
    expected = pytest.approx(float(probabilities[whole[start]]), rel=1e-4)
    fact = Fact(prompt, "Egypt", target_new=target, target_true="Cairo")
    assert measure_facts(model, [fact])[0].new.p_first == expected
    assert recall(model, [Question("edited", "Egypt", prompt, target)])[0].p_first == expected
    assert score_targets(model, [(prompt, target)])[0].p_first == expected
    assert list(locate_facts(model, [fact], ())[0].target_ids) == whole[start:]
