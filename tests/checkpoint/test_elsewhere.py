"""A saved model elsewhere: transformers' `generate` and pipeline write what our engine writes, thinking included.

(lm-evaluation-harness and llama.cpp's converter have tests of their own, in test_interop.py.)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import TEXTS
from transformers import AutoModelForCausalLM, AutoTokenizer
from writer import AFTERWARDS, COMPLETION, writer

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE, TAGS
from nanogpt_edit.engine.generate import generate
from nanogpt_edit.model.tokenizer import Tokenizer

transformers.utils.logging.disable_progress_bar()

QUESTIONS = ["What is 5 + 3?", "Tom has 3 apples and buys 14 more. How many?", "How many loaves are left?", "Why?"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def saved(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes `COMPLETION`, saved as after SFT."""
    own = Tokenizer.train(TEXTS, vocab_size=tokenizer.vocab_size)
    own.chat_template = REASONING_TEMPLATE
    directory = tmp_path_factory.mktemp("models") / request.param
    checkpoint.save(writer(request.param, own), directory)
    return directory


def ours(directory: Path, prompts: list[str]) -> list[str]:
    return [found.text for found in generate(checkpoint.load(directory), prompts, temperature=0, max_new_tokens=30)]


@pytest.fixture
def pipeline(saved: Path) -> Any:
    return transformers.pipeline("text-generation", model=str(saved), device="cpu")


def test_transformers_generate_writes_our_text_and_stops_at_the_answer(saved: Path) -> None:
    assert ours(saved, QUESTIONS) == [COMPLETION] * len(QUESTIONS)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    for question in QUESTIONS:
        batch = tokenizer(question, return_tensors="pt")
        written = model.generate(**batch, max_new_tokens=30, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True) == COMPLETION
        assert tokenizer.decode(written) == COMPLETION  # nothing after </answer>, not even the end of the text


def test_a_batch_padded_on_the_left_ends_row_by_row(saved: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    batch = tokenizer(QUESTIONS, return_tensors="pt", padding=True, padding_side="left")
    written = model.generate(**batch, max_new_tokens=30, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert tokenizer.batch_decode(written, skip_special_tokens=True) == ours(saved, QUESTIONS)


def test_the_pipeline_writes_our_text(saved: Path, pipeline: Any) -> None:
    found = pipeline(QUESTIONS, max_new_tokens=30, do_sample=False, return_full_text=False)
    assert [each[0]["generated_text"] for each in found] == ours(saved, QUESTIONS)


def test_a_conversation_is_put_as_training_put_its_questions(saved: Path, pipeline: Any) -> None:
    """The template poses the last question and opens `<think>`; what the pipeline gives back comes after it."""
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    turns += [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": f"  {QUESTIONS[0]}\n"}]
    prompt = pipeline.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == f"{QUESTIONS[0]}<think>"
    (found,) = pipeline(turns, max_new_tokens=30, do_sample=False, return_full_text=False)
    assert "<think>" + found["generated_text"] == ours(saved, QUESTIONS[:1])[0]


def test_a_worked_solution_is_a_conversation_too(saved: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved)
    turns = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": COMPLETION}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == QUESTIONS[0] + COMPLETION


def test_without_the_stops_it_would_go_on(saved: Path, tmp_path: Path) -> None:
    """What the tests above rest on: the text ends at `</answer>` because generation_config.json says so."""
    shutil.copytree(saved, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").unlink()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "m"), AutoTokenizer.from_pretrained(saved)
    batch = tokenizer(QUESTIONS[0], return_tensors="pt")
    written = model.generate(**batch, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
    assert COMPLETION + AFTERWARDS[:2] in tokenizer.decode(written)


# The reasoning tokens


def as_special(directory: Path) -> None:
    """Make the reasoning tokens special, as version 0.1.0 saved them."""
    entries = json.loads((directory / "tokenizer.json").read_text())
    for token in entries["added_tokens"]:
        token["special"] = True
    (directory / "tokenizer.json").write_text(json.dumps(entries))


def flags(directory: Path) -> dict[str, bool]:
    entries = json.loads((directory / "tokenizer.json").read_text())
    return {token["content"]: token["special"] for token in entries["added_tokens"]}


def test_only_the_end_of_text_is_special(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert flags(tmp_path) == {"<|endoftext|>": True, **dict.fromkeys(TAGS, False)}


def test_a_directory_of_the_old_kind_loads_as_one_of_the_new(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    as_special(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "additional_special_tokens": [*TAGS, "<|endoftext|>"]})
    )
    old = Tokenizer.load(tmp_path)
    text = f"{TEXTS[0]}<think>1</think> <answer>2</answer>"
    assert old.encode_with_spans(text) == tokenizer.encode_with_spans(text)
    assert (old.reasoning_ids, old.added) == (tokenizer.reasoning_ids, ())
    assert old.fingerprint == tokenizer.fingerprint
    old.save(tmp_path)
    assert flags(tmp_path)["<think>"] is False
    elsewhere = AutoTokenizer.from_pretrained(tmp_path)
    assert elsewhere.decode(elsewhere(text)["input_ids"], skip_special_tokens=True) == text
