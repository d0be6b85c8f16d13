"""A GGUF file's tokenizer: cut as llama.cpp cuts, special tokens found, ids the same once it is saved as a directory.

(Beside llama.cpp itself, on real vocabularies: test_interop.py.)
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TEXTS
from gguf_files import ROWS, random_model, write_gguf

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.tokenizer import Tokenizer

# Bytes as byte-level vocabularies write them; "Ġ" is a space, "Ċ" a line end.
LETTERS = ["a", "b", "s", "S", "'", "!", "1", "2", "3", "4", "Ġ", "Ċ"]
MERGES = ["Ġ a", "1 2", "12 3", "123 4", "' s", "' S", "Ġ Ġ", "Ġ 1", "! Ċ", "! a"]
TOKENS = [*LETTERS, *(merge.replace(" ", "") for merge in MERGES), "<|end|>", "<|start|>", "<note>", "a!b"]
KINDS = [1] * (len(TOKENS) - 4) + [3, 3, 4, 1]


def entries(pre: str, /, **changes: object) -> dict[str, object]:
    named = {
        "model": "gpt2", "pre": pre, "tokens": TOKENS, "token_type": KINDS, "merges": MERGES,
        "bos_token_id": TOKENS.index("<|start|>"), "eos_token_id": TOKENS.index("<|end|>"), **changes,
    }  # fmt: skip
    return {f"tokenizer__ggml__{name}": value for name, value in named.items()}


def tokenizer_of(path: Path, metadata: dict[str, object]) -> Tokenizer:
    tokenizer = checkpoint.load(write_gguf(path / "m.gguf", random_model("llama", width=32), **metadata)).tokenizer
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize(("pre", "text", "expected"), [
    # GPT-2's digits belong together, SmolLM's and Qwen's stand alone, Llama 3's come in threes.
    ("gpt-2", "1234", ["1234"]),
    ("smollm", "1234", ["1", "2", "3", "4"]),
    ("qwen2", "1234", ["1", "2", "3", "4"]),
    ("llama-bpe", "1234", ["123", "4"]),
    # A space belongs to GPT-2's number, and to no number of the others.
    ("gpt-2", " 1", ["Ġ1"]),
    ("smollm", " 1", ["Ġ", "1"]),
    ("qwen2", " 1", ["Ġ", "1"]),
    ("llama-bpe", " 1", ["Ġ", "1"]),
    # Of several spaces the last belongs to the word.
    ("gpt-2", "   a", ["ĠĠ", "Ġa"]),
    ("qwen2", "   a", ["ĠĠ", "Ġa"]),
    # Only the later families know a contraction in capitals, keep a sign before letters, and a line end behind signs.
    ("gpt-2", "a's'S", ["a", "'s", "'", "S"]),
    ("llama-bpe", "a's'S", ["a", "'s", "'S"]),
    ("gpt-2", "!a!\n", ["!", "a", "!", "Ċ"]),
    ("qwen2", "!a!\n", ["!a", "!Ċ"]),
    # Special and user-defined tokens are found first, in a word too; an ordinary one only by its merges.
    ("smollm", "a<|end|>b<note>1", ["a", "<|end|>", "b", "<note>", "1"]),
    ("gpt-2", "a!b", ["a", "!", "b"]),
])  # fmt: skip
def test_text_is_cut_as_llama_cpp_cuts_it(pre: str, text: str, expected: list[str], tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, entries(pre))
    assert [TOKENS[token_id] for token_id in tokenizer.encode(text)] == expected
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_llama_3_takes_a_word_that_is_a_token_whole(tmp_path: Path) -> None:
    """ "aa" is a token that no merge makes."""
    changes = {"tokens": [*TOKENS, "aa"], "token_type": [*KINDS, 1]}
    whole, merged = tmp_path / "whole", tmp_path / "merged"
    whole.mkdir(), merged.mkdir()
    assert tokenizer_of(whole, entries("llama-bpe", **changes)).encode("aa") == [len(TOKENS)]
    assert tokenizer_of(merged, entries("qwen2", **changes)).encode("aa") == [0, 0]


def test_ends_padding_and_template_come_from_the_file(tmp_path: Path) -> None:
    """The names of padding rows are no tokens: the reasoning tokens take those rows."""
    padding = [f"[PAD{row}]" for row in range(len(TOKENS), ROWS)]
    metadata = entries("smollm", tokens=[*TOKENS, *padding], token_type=[*KINDS, *[5] * len(padding)],
                       padding_token_id=24, eot_token_id=23)  # fmt: skip
    metadata["tokenizer__chat_template"] = "{{ messages[0]['content'] }}"
    tokenizer = tokenizer_of(tmp_path, metadata)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.end_ids) == ("<|end|>", "<note>", {22, 23})
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer.reasoning_ids == tuple(range(len(TOKENS), len(TOKENS) + 4))
    assert "<|end|>" in tokenizer.markup and "<note>" not in tokenizer.markup


def test_ids_are_the_same_once_it_is_saved(tmp_path: Path) -> None:
    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        model = checkpoint.load(write_gguf(tmp_path / "m.gguf", random_model("qwen2", width=32), **entries(pre)))
        checkpoint.save(model, tmp_path / pre)
        again = Tokenizer.load(tmp_path / pre)
        assert model.tokenizer is not None and again.fingerprint == model.tokenizer.fingerprint
        assert (again.eos_token, again.pad_token) == (model.tokenizer.eos_token, model.tokenizer.pad_token)
        config = json.loads((tmp_path / pre / "tokenizer_config.json").read_text())
        assert config["bos_token"] == "<|start|>" and config["add_bos_token"] is False
        for text in (*TEXTS, "<|start|>'s 12345<|end|>\n\n!"):
            assert again.encode(text) == model.tokenizer.encode(text)


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": "llama"}, '"tokenizer.ggml.model" must be "gpt2", byte-level BPE; found \'llama\''),
    ({"pre": "tekken"}, '"tokenizer.ggml.pre" is "tekken", a way of cutting text that is not known; known are gpt-2,'),
    ({"pre": None}, 'is "default", a way of cutting'),
    ({"tokens": None}, 'the metadata lack "tokenizer.ggml.tokens"'),
    ({"tokens": [1, 2]}, "must be a list of texts; found [1, 2]"),
    ({"tokens": [f"{i}" for i in range(ROWS + 1)]}, "must be at most as many as the embedding's 96 rows; found 97"),
    ({"tokens": ["a"] * len(TOKENS)}, "in which each token stands once; found 'a'"),
    ({"token_type": KINDS[1:]}, "must be as many as the 26 tokens; found 25"),
    ({"merges": ["a b"]}, "must join tokens to tokens of the vocabulary; found 'a b'"),
    ({"merges": ["ab"]}, "must join tokens to tokens of the vocabulary; found 'ab'"),
    ({"eos_token_id": 26}, '"tokenizer.ggml.eos_token_id" must be the id of one of the 26 tokens; found 26'),
    ({"eos_token_id": -1}, "must be a token id; found -1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        tokenizer_of(tmp_path, entries("smollm", **changes))
    assert message in str(error.value) and str(error.value).startswith(f"{tmp_path / 'm.gguf'}: ")
