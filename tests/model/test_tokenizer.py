"""Text to ids and back, character spans, the four reasoning tokens, and the files of other people's vocabularies."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from conftest import TEXTS, shared_data
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.reasoning import TAGS
from nanogpt_edit.model.tokenizer import Tokenizer

TRAINED = Tokenizer.train(TEXTS, vocab_size=300)
CARS = "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?"
FLAG = "Where is 🇪🇬 on the map?"


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.load(shared_data("gpt2_tokenizer"))


def bytes_tokenizer(**special: int) -> tokenizers.Tokenizer:
    """A byte-level vocabulary without merges, and then the `special` tokens in the order of their ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    for token, expected in sorted(special.items(), key=lambda item: item[1]):
        inner.add_special_tokens([token])
        assert inner.token_to_id(token) == expected
    return inner


# Training


def test_a_trained_vocabulary_is_as_large_as_asked_and_ends_with_the_special_tokens() -> None:
    assert TRAINED.vocab_size == 300
    assert TRAINED.eos_id == TRAINED.pad_id == 295
    assert TRAINED.reasoning_ids == (296, 297, 298, 299)
    assert TRAINED.encode("<think></think><answer></answer><|endoftext|>") == [296, 297, 298, 299, 295]


def test_digits_stand_alone_even_where_merging_them_would_pay() -> None:
    tokenizer = Tokenizer.train(["120 120 120 120 loaves of 120"] * 50, vocab_size=280)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("of 120")][-4:] == [" ", "1", "2", "0"]
    merged = [tokenizer.token_text(i) for i in range(256, tokenizer.think_start - 1)]
    assert " loaves" in merged
    assert not any(character.isdigit() for text in merged for character in text)


def test_training_is_deterministic() -> None:
    again = Tokenizer.train(iter(TEXTS), vocab_size=300)
    assert [again.token_text(i) for i in range(300)] == [TRAINED.token_text(i) for i in range(300)]
    assert again.encode(" ".join(TEXTS)) == TRAINED.encode(" ".join(TEXTS))


def test_a_text_with_nothing_left_to_merge_gives_a_smaller_vocabulary() -> None:
    tokenizer = Tokenizer.train(["ab"], vocab_size=1000)
    assert tokenizer.vocab_size == 256 + 1 + 5  # the bytes, "ab", the special tokens
    assert tokenizer.encode("ab") == [256]


def test_a_vocabulary_with_no_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="vocab_size 260 is too small.*at least 261"):
        Tokenizer.train(TEXTS, vocab_size=260)


# Encoding, spans, decoding


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert TRAINED.decode(TRAINED.encode(text)) == text


@given(st.text())
def test_spans_cover_the_text_and_hold_what_the_tokens_say(text: str) -> None:
    encoded = TRAINED.encode_with_spans(text)
    assert list(encoded.token_ids) == TRAINED.encode(text)
    covered = 0
    for start, end in encoded.spans:
        assert start <= covered <= end  # no gap
        assert 0 <= start < end <= len(text)
        covered = end
    assert covered == len(text)
    for (start, end), (next_start, _) in pairwise(encoded.spans):
        assert next_start == end or (next_start == end - 1 and start < end)  # tokens share at most one character
    # Tokens up to a place where no character is shared decode to exactly the characters before it.
    for index, ((_, end), (start, _)) in enumerate(pairwise(encoded.spans), start=1):
        if start == end:
            assert TRAINED.decode(encoded.token_ids[:index]) == text[:end]


def test_a_character_of_several_tokens_gives_each_its_whole_span() -> None:
    encoded = TRAINED.encode_with_spans("a🇪b")
    assert encoded.spans == ((0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3))
    assert [TRAINED.token_text(i) for i in encoded.token_ids] == ["a", "\\xf0", "\\x9f", "\\x87", "\\xaa", "b"]


def test_a_span_includes_the_space_a_word_begins_with() -> None:
    encoded = TRAINED.encode_with_spans("The Eiffel Tower")
    text = [("The Eiffel Tower")[start:end] for start, end in encoded.spans]
    assert "".join(text) == "The Eiffel Tower"
    assert text == [TRAINED.token_text(i) for i in encoded.token_ids]


def test_reasoning_tokens_are_text() -> None:
    ids = TRAINED.encode("<think>3 + 14 = 17</think><answer>17</answer>")
    assert TRAINED.decode(ids) == "<think>3 + 14 = 17</think><answer>17</answer>"


def test_ids_of_padding_rows_are_no_text() -> None:
    assert TRAINED.decode([65, 310, 66]) == TRAINED.decode([65, 66])
    assert TRAINED.token_text(310) == "[310]"


# GPT-2's own vocabulary


def test_gpt2_gives_the_reference_transcript(gpt2: Tokenizer) -> None:
    ids = gpt2.encode(CARS)
    words = "If there are 3 cars in the parking lot and 2 more cars arrive , how many cars are in the parking lot ?"
    expected = [1532, 612, 389, 513, 5006, 287, 262, 7647, 1256, 290, 362, 517, 5006, 9240, 11, 703, 867, 5006, 389]
    assert ids == [*expected, 287, 262, 7647, 1256, 30]
    assert len(ids) == 24 == len(words.split())
    assert [gpt2.token_text(i).strip() for i in ids] == words.split()


def test_gpt2_reasoning_tokens_take_the_padding_ids(gpt2: Tokenizer) -> None:
    assert gpt2.reasoning_ids == (50257, 50258, 50259, 50260)
    assert (gpt2.eos_id, gpt2.vocab_size) == (50256, 50261)
    assert gpt2.encode("<think>There are") == [50257, 1858, 389]
    assert (gpt2.added, gpt2.first_added) == (TAGS, 50257)


def test_gpt2_spans_of_a_flag(gpt2: Tokenizer) -> None:
    encoded = gpt2.encode_with_spans(FLAG)
    flag = FLAG.index("🇪")
    first = next(i for i, (start, end) in enumerate(encoded.spans) if start <= flag < end)
    assert encoded.spans[first] == (flag - 1, flag + 1)  # the space and the first character's first bytes
    assert gpt2.decode(encoded.token_ids) == FLAG


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_vocabulary_and_merges_equal_tokenizer_json(gpt2: Tokenizer, names: tuple[str, str], tmp_path: Path) -> None:
    for source, name in zip(("encoder.json", "vocab.bpe"), names, strict=True):
        shutil.copy(shared_data("gpt2_tokenizer") / source, tmp_path / name)
    pair = Tokenizer.load(tmp_path)
    text = f"{CARS} {FLAG} don't  stop\n\n<think>1234</think>  x<|endoftext|>"
    assert pair.encode_with_spans(text) == gpt2.encode_with_spans(text)
    assert (pair.vocab_size, pair.eos_id, pair.reasoning_ids) == (50261, 50256, gpt2.reasoning_ids)


# Other people's vocabularies, and files


def test_saved_and_loaded_gives_the_same_ids(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    text = " ".join(TEXTS) + FLAG + "<think>1</think>"
    assert loaded.encode_with_spans(text) == TRAINED.encode_with_spans(text)
    assert (loaded.vocab_size, loaded.eos_id, loaded.reasoning_ids) == (300, 295, TRAINED.reasoning_ids)
    assert loaded.fingerprint == TRAINED.fingerprint != Tokenizer.train(TEXTS, vocab_size=290).fingerprint
    assert loaded.added == ()  # they are part of the vocabulary now
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    loaded.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


def test_tokens_a_vocabulary_has_are_used_as_they_are() -> None:
    inner = bytes_tokenizer(**{"<|endoftext|>": 256, "<think>": 257, "</think>": 258, "<|im_end|>": 259})
    tokenizer = Tokenizer(inner, eos_token="<|im_end|>")
    assert tokenizer.reasoning_ids == (257, 258, 260, 261)
    assert tokenizer.added == ("<answer>", "</answer>")
    assert (tokenizer.eos_id, tokenizer.first_added, tokenizer.vocab_size) == (259, 260, 262)


def test_no_bos_is_added_and_none_survives_saving(tmp_path: Path) -> None:
    inner = bytes_tokenizer(**{"<|begin_of_text|>": 256, "<|end_of_text|>": 257})
    inner.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 256)]
    )
    inner.enable_truncation(max_length=2)
    inner.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": {"content": "<|begin_of_text|>"}, "eos_token": "<|end_of_text|>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.load(tmp_path)
    assert len(tokenizer.encode("abcd")) == 4
    assert tokenizer.eos_id == 257
    tokenizer.save(tmp_path)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("abcd").ids == tokenizer.encode(
        "abcd"
    )
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (saved["bos_token"], saved["eos_token"]) == ("<|begin_of_text|>", "<|end_of_text|>")
    assert saved["add_bos_token"] is False


def test_a_vocabulary_without_end_of_text_pads_with_zero() -> None:
    tokenizer = Tokenizer(bytes_tokenizer())
    assert (tokenizer.eos_id, tokenizer.eos_token, tokenizer.pad_id) == (None, None, 0)


def test_a_directory_without_a_tokenizer_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer found\. Put tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_tokenizer(tmp_path: Path) -> None:
    own = Tokenizer.train(["Tom has 3 apples."], vocab_size=280)
    own.chat_template = "{{ text }}"
    own.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    found = Tokenizer.load(tmp_path)
    assert (found.fingerprint, found.chat_template) == (own.fingerprint, own.chat_template)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not UTF-8 text"):
        Tokenizer.load(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("a b c d")
    with pytest.raises(UserError, match=r"merges\.txt: not a GPT-2 vocabulary"):
        Tokenizer.load(tmp_path)


def test_another_familys_vocabulary_is_not_cut_by_gpt2s_rules(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(UserError, match=r"Qwen2Tokenizer.*Add tokenizer\.json"):
        Tokenizer.load(tmp_path)
