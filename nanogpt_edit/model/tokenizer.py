"""Text to token ids to character spans, and the four reasoning tokens, whatever family the vocabulary comes from.

Everything rests on the `tokenizers` library. Two things are ours. The tokens `<think>`, `</think>`, `<answer>`,
`</answer>` keep the ids they have where a vocabulary has them and take the next free ones where it has not (50257 to
50260 for GPT-2, inside the padding of its 50304 rows); they are never *special*, for what decodes text elsewhere leaves
special tokens out, and the answer with them. And post-processing is switched off for good: no family adds a BOS token
behind our back, and a span includes the space a token begins with, so that the spans of a byte-level vocabulary cover
the text without a gap. A character cut over several byte tokens gives each of them its whole span.

A vocabulary trained here is byte-level BPE (Radford et al. 2019) over all 256 bytes, with one difference: every digit
stands alone, so that numbers are read and written digit by digit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_bytes, read_json, write_json, write_text
from nanogpt_edit.common.reasoning import TAGS
from nanogpt_edit.common.terminal import progress

if TYPE_CHECKING:
    from nanogpt_edit.model.gpt import GPT

END_OF_TEXT = "<|endoftext|>"

# How the families end a text, for directories that do not say it: GPT-2 and Qwen, Llama 3, Llama 2.
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>")

# Pairs of files that hold GPT-2's vocabulary where there is no tokenizer.json: as OpenAI and as Hugging Face name them.
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))

# Where a chat template lies; in tokenizer_config.json it is the entry of this name.
CHAT_TEMPLATE = "chat_template"

# Entries of a tokenizer_config.json that would have other libraries cut text in another way than tokenizer.json says.
# Every other entry is kept.
CUTTING = (
    "tokenizer_class",
    "backend",
    "auto_map",
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "added_tokens_decoder",
    "do_lower_case",
    "from_slow",
    "legacy",
    "split_special_tokens",
    "tokenizer_file",
)
NAMED_TOKENS = ("bos_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Encoded:
    """A text as tokens. `Encoded((3, 7), ((0, 2), (2, 6)))`: token 7 is characters 2 to 5 of the text."""

    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """Character offsets [start, end) into the text, one pair per token."""


class Tokenizer:
    """A vocabulary with the four reasoning tokens in it. Make one with `load` or `train`."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        eos_token: str | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Take `inner` over: the reasoning tokens are added to it, its post-processing and truncation removed.

        `eos_token` is what ends a text (default: the first of `END_OF_TEXT_NAMES` it has); `settings` are entries of a
        tokenizer_config.json to be kept when saving.
        """
        inner = _none_special(inner)
        inner.post_processor = processors.ByteLevel(trim_offsets=False)  # adds nothing, trims nothing
        inner.no_truncation()
        inner.no_padding()
        known = {token.content for token in inner.get_added_tokens_decoder().values()}
        self.added: tuple[str, ...] = tuple(token for token in TAGS if token not in known)
        """The reasoning tokens that were not in the vocabulary and took the next free ids."""
        inner.add_tokens([_reasoning(token) for token in self.added])
        self._inner = inner
        self._settings = dict(settings or {})
        template = self._settings.get(CHAT_TEMPLATE)
        self.chat_template: str | None = template if isinstance(template, str) else None
        """How a conversation is written for the model (Jinja, as transformers reads it); None where nobody said."""
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.first_added: int = min((vocabulary[token] for token in self.added), default=self.vocab_size)
        """Ids below it came with the vocabulary."""
        self.think_start, self.think_end, self.answer_start, self.answer_end = (vocabulary[token] for token in TAGS)
        candidates = END_OF_TEXT_NAMES if eos_token is None else (eos_token, *END_OF_TEXT_NAMES)
        self.eos_token: str | None = next((token for token in candidates if token in vocabulary), None)
        self.eos_id: int | None = None if self.eos_token is None else vocabulary[self.eos_token]
        pad_token = _token_text(self._settings.get("pad_token"))
        self.pad_token: str | None = pad_token if pad_token in vocabulary else self.eos_token
        self.pad_id: int = 0 if self.pad_token is None else vocabulary[self.pad_token]
        self.end_ids: frozenset[int] = frozenset(() if self.eos_id is None else (self.eos_id,))
        """What ends a text; a model's generation_config.json may name more than one token."""

    @classmethod
    @progress("learning a vocabulary")
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
        """Learn a byte-level BPE from `texts`; `vocab_size` counts the 256 bytes, the merges and five special tokens.

        The special tokens have the last ids: `<|endoftext|>`, then the four reasoning tokens. The vocabulary is
        smaller than asked only when the texts hold no further pair to merge. The same texts give the same vocabulary.
        Raises UserError when `vocab_size` has no room for the bytes and the special tokens.
        """
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        special = (END_OF_TEXT, *TAGS)
        smallest = len(alphabet) + len(special)
        if vocab_size < smallest:
            raise UserError(
                f"vocab_size {vocab_size} is too small for a byte-level vocabulary: {len(alphabet)} bytes and "
                f"{len(special)} special tokens need at least {smallest}."
            )
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(special), initial_alphabet=alphabet, show_progress=False
        )
        inner.train_from_iterator(texts, trainer=trainer)
        inner.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        return cls(inner)

    @classmethod
    def load(cls, directory: Path | str) -> Tokenizer:
        """Read a directory's tokenizer.json, or GPT-2's vocabulary and merges where it has none.

        Raises UserError when neither is there or a file is damaged.
        """
        directory = Path(directory)
        settings = _settings(directory)
        file = directory / "tokenizer.json"
        if file.is_file():
            text = _text(file)
            try:
                inner = tokenizers.Tokenizer.from_str(text)
            except Exception as error:  # the library raises nothing narrower
                raise UserError(f"{file}: not a tokenizer the tokenizers library can read ({_line(error)}).") from None
        else:
            inner = _gpt2(directory, settings)
        return cls(inner, eos_token=_token_text(settings.get("eos_token")), settings=settings)

    def save(self, directory: Path | str) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json, each atomically.

        `transformers.AutoTokenizer` reads them and gives the same ids, without a BOS token.
        """
        directory = Path(directory)
        present = self.named_tokens
        kept = {name: value for name, value in self._settings.items() if name not in CUTTING and value is not None}
        if self.chat_template is not None:
            kept.pop(CHAT_TEMPLATE, None)
            write_text(directory / f"{CHAT_TEMPLATE}.jinja", self.chat_template)
        ours = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config = {**ours, "add_bos_token": False, **present}
        config |= {name: value for name, value in _without_reasoning(kept).items() if name not in config}
        write_text(directory / "tokenizer.json", self._inner.to_str(pretty=True))
        write_json(directory / "tokenizer_config.json", config)
        write_json(directory / "special_tokens_map.json", present)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. No BOS is added; reasoning tokens written in the text become their own ids."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_with_spans(self, text: str) -> Encoded:
        """Token ids of `text` and, for each, the characters it stands for (see the module's opening)."""
        encoding = self._inner.encode(text, add_special_tokens=False)
        return Encoded(token_ids=tuple(encoding.ids), spans=tuple(encoding.offsets))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`; ids of padding rows give nothing."""
        text: str = self._inner.decode(list(token_ids), skip_special_tokens=False)
        return text

    def token_text(self, token_id: int) -> str:
        r"""One token as a transcript shows it: `" are"`, `"<think>"`, `"\xf0\x9f"` for a part of a character."""
        text = self.decode([token_id])
        token = self._inner.id_to_token(token_id)
        if token is None:
            return f"[{token_id}]"
        if "\ufffd" in text:
            return "".join(_byte_text(character) for character in token)
        # SentencePiece vocabularies write a space as U+2581, and their decoder drops it from the front.
        return token.replace("\u2581", " ") if token.startswith("\u2581") else text

    def to_json(self) -> str:
        """The whole vocabulary as the text of a tokenizer.json."""
        text: str = self._inner.to_str()
        return text

    @property
    def tokens(self) -> dict[int, str]:
        """Every token by its id, as the vocabulary writes it (" are" as "Ġare")."""
        return {token_id: token for token, token_id in self._inner.get_vocab(with_added_tokens=True).items()}

    @property
    def named_tokens(self) -> dict[str, str]:
        """The tokens that have a part to play, by transformers' names for it: `{"eos_token": "<|endoftext|>", …}`."""
        named = {"eos_token": self.eos_token, "pad_token": self.pad_token}
        named |= {name: _token_text(self._settings.get(name)) for name in NAMED_TOKENS}
        return {name: token for name, token in named.items() if token is not None}

    @property
    def bos_id(self) -> int | None:
        """Id of the token that other programs may put before a text; nothing here does. None where none is named."""
        token = _token_text(self._settings.get("bos_token"))
        found: int | None = None if token is None else self._inner.token_to_id(token)
        return found

    @property
    def stop_ids(self) -> frozenset[int]:
        """What ends a completion: `</answer>`, and the end of a text."""
        return self.end_ids | {self.answer_end}

    @cached_property
    def markup(self) -> tuple[str, ...]:
        """The texts of the special tokens: written in a text, they are read as the tokens, not as characters."""
        special = {token.content for token in self._inner.get_added_tokens_decoder().values() if token.special}
        return tuple(sorted({*special, *TAGS, *([self.eos_token] if self.eos_token else [])}))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of vocabulary, merges and special tokens: equal where every text becomes the same tokens."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def vocabulary_sha256(self) -> str:
        """SHA-256 of the tokens in the order of their ids; unlike `fingerprint` the same under any library version."""
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        ordered = sorted(vocabulary, key=lambda token: (vocabulary[token], token))
        return hashlib.sha256("\0".join(ordered).encode()).hexdigest()

    @property
    def reasoning_ids(self) -> tuple[int, int, int, int]:
        """Ids of the four reasoning tokens, in the order of `TAGS`."""
        return self.think_start, self.think_end, self.answer_start, self.answer_end


def _reasoning(token: str) -> AddedToken:
    return AddedToken(token, special=False, normalized=False)


def _none_special(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same vocabulary, in which no reasoning token is special (the library can only change that in the JSON)."""
    known = inner.get_added_tokens_decoder().values()
    if not any(token.special and token.content in TAGS for token in known):
        return inner
    entries = json.loads(inner.to_str())
    for token in entries["added_tokens"]:
        token["special"] &= token["content"] not in TAGS
    return tokenizers.Tokenizer.from_str(json.dumps(entries))


def _without_reasoning(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings whose lists of special tokens (under whatever name) do not hold the reasoning tokens."""
    return {
        name: [each for each in value if _token_text(each) not in TAGS] if isinstance(value, list) else value
        for name, value in settings.items()
    }


def _gpt2(directory: Path, settings: Mapping[str, object]) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer from its vocabulary and its merges."""
    for vocabulary_name, merges_name in GPT2_FILES:
        vocabulary, merges = directory / vocabulary_name, directory / merges_name
        if vocabulary.is_file() and merges.is_file():
            break
    else:
        raise UserError(
            f"{directory}: no tokenizer found. Put tokenizer.json there, or GPT-2's encoder.json and vocab.bpe, "
            "or its vocab.json and merges.txt."
        )
    family = str(settings.get("tokenizer_class", "GPT2Tokenizer"))
    if not family.startswith("GPT2"):
        raise UserError(
            f"{directory}: {vocabulary_name} and {merges_name} belong to a {family}, whose rules for cutting text only "
            "tokenizer.json holds. Add tokenizer.json."
        )
    try:
        inner = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{vocabulary}, {merges_name}: not a GPT-2 vocabulary ({_line(error)}).") from None
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return inner


def _settings(directory: Path) -> dict[str, object]:
    """tokenizer_config.json, with the chat template that lies beside it; empty where there is neither."""
    file, template = directory / "tokenizer_config.json", directory / f"{CHAT_TEMPLATE}.jinja"
    settings = read_json(file) if file.is_file() else {}
    if template.is_file():
        settings[CHAT_TEMPLATE] = _text(template)
    return settings


def _text(file: Path) -> str:
    try:
        return read_bytes(file).decode("utf-8-sig")  # newlines as they are
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text ({error}); fetch the file again.") from None


def _token_text(value: object) -> str | None:
    """A token of tokenizer_config.json, written as a string or as {"content": …}."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _byte_text(character: str) -> str:
    byte = _BYTES.get(character)
    return character if byte is None else chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (Radford et al. 2019).

    Bytes that print stand for themselves; the others, in order, for the characters from U+0100 on.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_of_character()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def tokenizer_of(model: GPT) -> Tokenizer:
    """The tokenizer that came with the model. Raises UserError when there is none."""
    if model.tokenizer is None:
        raise UserError("the model carries no tokenizer; load it from a directory that has tokenizer.json.")
    return model.tokenizer
