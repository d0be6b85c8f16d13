"""The tokenizer in a GGUF file's metadata: byte-level BPE, cut as llama.cpp cuts it.

The file has tokens, merges and kinds of tokens, and how a text is cut before merging only by a name, `tokenizer.ggml.
pre`. What stands behind each name is in llama.cpp's program (src/llama-vocab.cpp) alone; `CUTS` has it as the
`tokenizers` library writes it. llama.cpp adds nothing else: no Unicode normal form, also where the family's own
tokenizer has one (Qwen's NFC).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from nanogpt_edit.checkpoint.gguf_metadata import Metadata
from nanogpt_edit.common.errors import UserError, visible
from nanogpt_edit.model.tokenizer import CHAT_TEMPLATE, Tokenizer

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, MERGES, KINDS = "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"
TEMPLATE = "tokenizer.chat_template"
BYTE_LEVEL = "gpt2"
"""What `MODEL` calls byte-level BPE, of whatever family."""
NAMED = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}
END_OF_TURN = "tokenizer.ggml.eot_token_id"
ADD_BOS = "tokenizer.ggml.add_bos_token"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""Kinds of tokens. Control tokens are not printed, user-defined ones are; both are found before a text is cut."""

DIGIT_CUT = r"\p{N}"
GPT2_CUT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LATER_CUT = (
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (GPT2_CUT,),
    "smollm": (DIGIT_CUT, GPT2_CUT),
    "llama-bpe": (LATER_CUT % r"\p{N}{1,3}",),
    "qwen2": (LATER_CUT % r"\p{N}",),
}
"""Each pattern cuts the pieces that the one before it left, where it matches and between."""
WHOLE_WORDS = frozenset({"llama-bpe"})
"""Where a word that is a token is never cut, whatever the merges say."""


def read_tokenizer(metadata: Metadata, *, rows: int) -> Tokenizer | None:
    """The tokenizer of a file whose embedding has `rows`; None where the file says that it has none.

    Raises UserError, naming the file, for a kind of vocabulary or a way of cutting that is not known, and for entries
    that do not fit together.
    """
    if metadata.text(MODEL, "none") == "none":
        return None
    if metadata.text(MODEL) != BYTE_LEVEL:
        raise metadata.wrong(MODEL, f'must be "{BYTE_LEVEL}", byte-level BPE', metadata.text(MODEL))
    pre = metadata.text(PRE, "default")
    if pre not in CUTS:
        raise UserError(
            f'"{PRE}" is "{visible(pre)}", a way of cutting text that is not known; known are {", ".join(CUTS)}.',
            place=f"{metadata.file}:",
        )
    tokens = metadata.texts(TOKENS)
    kinds = metadata.integers(KINDS, [NORMAL] * len(tokens))
    _check(metadata, tokens, kinds, rows)
    while kinds and kinds[-1] == UNUSED:  # the names of padding rows
        tokens, kinds = tokens[:-1], kinds[:-1]
    inner = _byte_level(metadata, tokens, pre)
    inner.add_tokens(
        [
            AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED, UNKNOWN)
        ]
    )
    settings = _settings(metadata, tokens)
    eos = settings.get("eos_token")
    return Tokenizer(inner, eos_token=eos, settings=settings)


def named_ids(metadata: Metadata) -> dict[str, int]:
    """The ids of the tokens that begin, end and pad texts, as config.json calls them."""
    named = {f"{name}_id": metadata.token_id(key) for name, key in NAMED.items() if name != "unk_token"}
    return {name: token_id for name, token_id in named.items() if token_id is not None}


def end_ids(metadata: Metadata) -> list[int]:
    """What ends a text, and what ends a turn of a conversation."""
    found = (metadata.token_id(NAMED["eos_token"]), metadata.token_id(END_OF_TURN))
    return list(dict.fromkeys(token_id for token_id in found if token_id is not None))


def _byte_level(metadata: Metadata, tokens: Sequence[str], pre: str) -> tokenizers.Tokenizer:
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    merges = []
    for line in metadata.texts(MERGES):
        left, _, right = line.partition(" ") if not line.startswith(" ") else ("", "", "")
        if not {left, right, left + right} <= vocabulary.keys():
            raise metadata.wrong(MERGES, "must join tokens to tokens of the vocabulary", line)
        merges.append((left, right))
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in CUTS[pre]]
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def _check(metadata: Metadata, tokens: Sequence[str], kinds: Sequence[int], rows: int) -> None:
    if len(tokens) > rows:
        raise metadata.wrong(TOKENS, f"must be at most as many as the embedding's {rows:,} rows", len(tokens))
    if len(kinds) != len(tokens):
        raise metadata.wrong(KINDS, f"must be as many as the {len(tokens):,} tokens", len(kinds))
    token, times = Counter(tokens).most_common(1)[0] if tokens else ("", 0)
    if times != 1:
        raise metadata.wrong(TOKENS, "must be a list in which each token stands once", token)


def _settings(metadata: Metadata, tokens: Sequence[str]) -> dict[str, str]:
    """Entries of a tokenizer_config.json."""
    settings: dict[str, str] = {}
    for name, key in NAMED.items():
        token_id = metadata.token_id(key)
        if token_id is not None:
            if token_id >= len(tokens):
                raise metadata.wrong(key, f"must be the id of one of the {len(tokens):,} tokens", token_id)
            settings[name] = tokens[token_id]
    if TEMPLATE in metadata.raw:
        settings[CHAT_TEMPLATE] = metadata.text(TEMPLATE)
    return settings
