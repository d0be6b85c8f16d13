"""Text that a model writes itself: as much as is asked for, the same each time, without the tokens added to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanogpt_edit import cli
from nanogpt_edit.common.files import CACHE_VARIABLE
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import END_OF_TEXT, tokenizer_of
from nanogpt_edit.pipeline import own_text as own_text_file
from nanogpt_edit.pipeline.own_text import OPENING, kept_own_text, kept_texts, opening_ids, own_text


def test_a_model_writes_as_much_text_as_it_is_asked_for(speaking_gpt: GPT) -> None:
    written = own_text(speaking_gpt, tokens=200, seed=0)
    assert written == own_text(speaking_gpt, tokens=200, seed=0)
    assert written != own_text(speaking_gpt, tokens=200, seed=1)
    assert all(text.strip() for text in written)
    assert not any(tag in text for text in written for tag in (END_OF_TEXT, "<think>", "</answer>"))
    assert len(own_text(speaking_gpt, tokens=400, seed=0)) > len(written)


def test_a_text_opens_with_the_end_of_the_one_before_or_with_a_word(
    speaking_gpt: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of(speaking_gpt)
    assert [tokenizer.token_text(i) for i in opening_ids(tokenizer)] == [END_OF_TEXT]
    monkeypatch.setattr("nanogpt_edit.pipeline.own_text.END_OF_TEXT_NAMES", ("</s>",))
    assert tokenizer.decode(opening_ids(tokenizer)) == OPENING


def test_a_text_is_written_once_for_the_same_weights(
    speaking_gpt: GPT,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = kept_own_text(speaking_gpt, tokens=64, seed=0, cache_dir=tmp_path)
    assert first == own_text(speaking_gpt, tokens=64, seed=0)
    [file] = kept_texts(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(own_text_file, "own_text", None)
        assert kept_own_text(speaking_gpt, tokens=64, seed=0, cache_dir=tmp_path) == first
    with torch.no_grad():
        before = speaking_gpt.embed.weight[0, 0].clone()
        speaking_gpt.embed.weight[0, 0] += 1.0
    kept_own_text(speaking_gpt, tokens=64, seed=0, cache_dir=tmp_path)
    kept_own_text(speaking_gpt, tokens=64, seed=1, cache_dir=tmp_path)
    assert len(kept_texts(tmp_path)) == 3
    with torch.no_grad():
        speaking_gpt.embed.weight[0, 0] = before

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cli.main(["cache"]) == 0
    assert "; 3 texts, " in capsys.readouterr().out
    file.write_bytes(file.read_bytes()[:-3])
    assert kept_own_text(speaking_gpt, tokens=64, seed=0, cache_dir=tmp_path) == first
    assert "damaged" in caplog.text
    assert cli.main(["cache", "clear"]) == 0 and kept_texts(tmp_path) == {}


def test_where_nothing_can_be_kept_the_text_is_written_all_the_same(
    speaking_gpt: GPT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    assert kept_own_text(speaking_gpt, tokens=64, seed=0, cache_dir=tmp_path / "cache")
    assert "cannot be kept there" in caplog.text
