"""A byte-level vocabulary as the metadata of a GGUF file have it: the way back of `gguf_tokenizer.py`.

llama.cpp prints nothing for a control token, so the reasoning tokens are user-defined ones; and it stops at the end of
a turn, which is `</answer>`. How text is cut into words is not in the file: it names one of llama.cpp's own ways, and a
vocabulary cut in yet another way is refused, for it would give other tokens there. One that was trained here is cut as
SmolLM's: single digits, then GPT-2's rule.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nanogpt_edit.checkpoint import gguf_tokenizer as gguf
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.tokenizer import Tokenizer

ANY_CASE = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]")
"""The same words as the families' own files have them, and as llama.cpp has them."""
NORMAL_FORMS = (None, "NFC")
"""llama.cpp knows none; Qwen asks for NFC, in which nearly all text is anyway."""


def vocabulary_metadata(tokenizer: Tokenizer, *, rows: int) -> dict[str, object]:
    """The entries `tokenizer.…` for an embedding of `rows`.

    Raises UserError for a vocabulary that is not byte-level BPE, or is cut in a way that llama.cpp has not.
    """
    stored: dict[str, Any] = json.loads(tokenizer.to_json())
    tokens, special = tokenizer.tokens, {token["id"]: token["special"] for token in stored["added_tokens"]}
    end = tokenizer.answer_end if tokenizer.eos_id is None else tokenizer.eos_id
    named: dict[str, object] = {
        gguf.MODEL: gguf.BYTE_LEVEL,
        gguf.PRE: cut_of(stored),
        gguf.TOKENS: [tokens.get(i, f"[PAD{i}]") for i in range(rows)],
        gguf.KINDS: [_kind(i, tokens, special) for i in range(rows)],
        gguf.MERGES: [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]],
        gguf.NAMED["bos_token"]: end if tokenizer.bos_id is None else tokenizer.bos_id,
        gguf.NAMED["eos_token"]: end,
        gguf.NAMED["pad_token"]: None if tokenizer.pad_token is None else tokenizer.pad_id,
        gguf.END_OF_TURN: tokenizer.answer_end,
        gguf.ADD_BOS: False,
        gguf.TEMPLATE: tokenizer.chat_template,
    }
    return {key: value for key, value in named.items() if value is not None}


def _kind(token_id: int, tokens: Mapping[int, str], special: Mapping[int, bool]) -> int:
    if token_id not in tokens:
        return gguf.UNUSED
    if token_id not in special:
        return gguf.NORMAL
    return gguf.CONTROL if special[token_id] else gguf.USER_DEFINED


def cut_of(stored: Mapping[str, Any]) -> str:
    """What llama.cpp calls the way in which a tokenizer.json cuts text. Raises UserError where it has none."""
    model, decoder, normal_form = stored["model"], stored["decoder"], stored["normalizer"]
    marked = any(model.get(name) for name in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"))
    if model["type"] != "BPE" or (decoder or {}).get("type") != "ByteLevel" or marked:
        raise UserError("the vocabulary is no byte-level BPE, the only kind that is written as GGUF.")
    if normal_form is not None and normal_form["type"] not in NORMAL_FORMS:
        raise UserError(
            f"the vocabulary brings text into the form {normal_form['type']} first, which llama.cpp does not."
        )
    patterns = tuple(_patterns(stored["pre_tokenizer"]))
    for name, known in gguf.CUTS.items():
        if patterns == known and bool(model.get("ignore_merges")) == (name in gguf.WHOLE_WORDS):
            return name
    raise UserError(
        "the vocabulary cuts text in a way that is none of those of llama.cpp known here "
        f"({', '.join(gguf.CUTS)}); there it would give other tokens."
    )


def _patterns(cut: Mapping[str, Any] | None) -> Iterator[str]:
    """The patterns by which text is cut, one after the other; "" for a step that is no such cut."""
    if cut is None:
        yield ""
    elif cut["type"] == "Sequence":
        for step in cut["pretokenizers"]:
            yield from _patterns(step)
    elif cut["type"] == "ByteLevel":
        if cut["add_prefix_space"]:
            yield ""
        if cut["use_regex"]:
            yield gguf.GPT2_CUT
    elif cut["type"] == "Digits" and cut["individual_digits"]:
        yield gguf.DIGIT_CUT
    elif cut["type"] == "Split" and cut["behavior"] == "Isolated" and not cut["invert"]:
        yield cut["pattern"].get("Regex", "").replace(*ANY_CASE)
    else:
        yield ""
